"""The declared structures against the C compiler's layout of Xen's public headers, in both ABIs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from vmm.xenabi import structs, toolstack_structs
from vmm.xenabi.cstruct import U8, U32, U64, ULONG, Abi, Struct

HEADERS = Path("/usr/include/xen")
# Where a declared field has another name in C: inside a union or an array.
C_NAMES = {
    ("evtchn_status", "u_dom"): "u.interdomain.dom",
    ("evtchn_status", "u_port"): "u.interdomain.port",
    ("vcpu_register_runstate_memory_area", "addr"): "addr.p",
    ("vcpu_register_time_memory_area", "addr"): "addr.p",
    ("vcpu_runstate_info", "time_running"): "time[0]",
    ("vcpu_runstate_info", "time_runnable"): "time[1]",
    ("vcpu_runstate_info", "time_blocked"): "time[2]",
    ("vcpu_runstate_info", "time_offline"): "time[3]",
    **{("multicall_entry", f"arg{n}"): f"args[{n}]" for n in range(6)},
    ("xen_add_to_physmap_batch", "u"): "u.foreign_domid",
    ("gnttab_copy", "source"): "source.u.gmfn",
    ("gnttab_copy", "source_domid"): "source.domid",
    ("gnttab_copy", "source_offset"): "source.offset",
    ("gnttab_copy", "dest"): "dest.u.gmfn",
    **{("xen_hvm_get_mem_type", f"pad{number}"): f"pad[{number}]" for number in range(2)},
    ("xen_foreign_memory_map", "map_nr_entries"): "map.nr_entries",
    ("xen_foreign_memory_map", "map_buffer"): "map.buffer",
    **{("xen_reserved_device_memory_map", f"dev_pci_{part}"): f"dev.pci.{part}" for part in ("seg", "bus", "devfn")},
    **{
        ("xen_memory_exchange", f"{side}_{field}"): f"{side}.{field}"
        for side in ("in", "out")
        for field in ("extent_start", "nr_extents", "extent_order", "mem_flags", "domid")
    },
    **{("xen_vnuma_topology_info", f"{name}_pad"): f"{name}.pad" for name in ("vdistance", "vcpu_to_vnode", "vmemrange")},
    ("gnttab_copy", "dest_domid"): "dest.domid",
    ("gnttab_copy", "dest_offset"): "dest.offset",
    ("xen_domctl_getdomaininfo", "emulation_flags"): "arch_config.emulation_flags",
    ("xen_domctl_getdomaininfo", "misc_flags"): "arch_config.misc_flags",
    **{
        (f"xen_{struct}", field + part): f"{field}.{name}"
        for struct, field in (
            ("sysctl_cpupool_op", "cpumap"),
            ("domctl_vcpuaffinity", "cpumap_hard"),
            ("domctl_vcpuaffinity", "cpumap_soft"),
            ("domctl_nodeaffinity", "nodemap"),
        )
        for part, name in (("", "bitmap"), ("_bits", "nr_bits"))
    },
    ("physdev_pci_device_add", "physfn_bus"): "physfn.bus",
    ("physdev_pci_device_add", "physfn_devfn"): "physfn.devfn",
}


def compiled_layout(declared: list[type[Struct]], abi: Abi, folder: Path) -> list[int]:
    """Sizes and offsets as the compiler has them, in the order of the declarations."""
    source = ["#include <stdint.h>", "#include <stddef.h>", "#define __XEN_TOOLS__ 1", "#include <xen/xen.h>"]
    source += [f"#include <xen/{header}>" for header in sorted({kind.HEADER for kind in declared})]
    source.append("const uint64_t layout[] = {")
    for kind in declared:
        source.append(f"sizeof(struct {kind.C_NAME}),")
        for field in filter(kind.sizeof_field, kind.FIELDS):
            c_field = C_NAMES.get((kind.C_NAME, field), field)
            source.append(f"offsetof(struct {kind.C_NAME}, {c_field}), sizeof(((struct {kind.C_NAME} *)0)->{c_field}),")
    source.append("};")
    (folder / "layout.c").write_text("\n".join(source))
    mode = "-m64" if abi is Abi.X86_64 else "-m32"
    command = ["gcc", mode, "-ffreestanding", "-c", "-o", str(folder / "layout.o"), str(folder / "layout.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(folder / "layout.o", "rb") as handle:
        data = ELFFile(handle).get_section_by_name(".rodata").data()
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


@pytest.mark.parametrize("abi", Abi, ids=lambda abi: abi.name)
def test_every_declared_structure_has_the_compilers_layout(abi: Abi, tmp_path: Path) -> None:
    assert HEADERS.is_dir(), "install libxen-dev: the public headers are what the declarations are checked against"
    assert shutil.which("gcc")
    modules = (structs.__name__, toolstack_structs.__name__)
    declared = [kind for kind in Struct.DECLARED if kind.__module__ in modules]
    assert len(declared) > 60
    expected = compiled_layout(declared, abi, tmp_path)
    ours = []
    names = []
    for kind in declared:
        ours.append(kind.sizeof(abi))
        names.append(f"sizeof {kind.C_NAME}")
        for field in filter(kind.sizeof_field, kind.FIELDS):
            ours += [kind.offsetof(field, abi), kind.sizeof_field(field, abi)]
            names += [f"{kind.C_NAME}.{field}", f"sizeof {kind.C_NAME}.{field}"]
    differing = [(name, a, b) for name, a, b in zip(names, ours, expected, strict=True) if a != b]
    assert not differing


class Sample(Struct, c_name="sample", header="none"):
    small: U8
    word: ULONG
    wide: U64
    last: U32


def test_pack_and_unpack_are_inverse_in_both_abis() -> None:
    for abi in Abi:
        value = Sample(small=1, word=2, wide=3, last=4)
        assert Sample.unpack(value.pack(abi), abi) == value


def test_64_bit_words_align_to_4_in_a_32_bit_structure() -> None:
    assert Sample.offsetof("wide", Abi.X86_32) == 8
    assert Sample.sizeof(Abi.X86_32) == 20
    assert Sample.sizeof(Abi.X86_64) == 32


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="no field nothing"):
        Sample(nothing=1)
