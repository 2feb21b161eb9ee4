"""Laying a guest out: start_info, modules, command line, ACPI tables, CPUID, initramfs."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.unit.images import Load, elf, good, note
from vmm.boot import acpi, pvh
from vmm.boot.cpio import CpioWriter
from vmm.boot.elf import ElfImage
from vmm.boot.errors import ImageError
from vmm.boot.unpacked import Unpacked
from vmm.host.cpuinfo import first_cpu
from vmm.kvm import CpuidEntry, HostMemory
from vmm.machine.cpuid import guest_cpuid
from vmm.xenabi.constants import E820
from vmm.xenabi.cpuid import tsc_scale
from vmm.xenabi.structs import HvmMemmapEntry, HvmModlistEntry, HvmStartInfo
from vmm.xenabi.values import Gpa, MemmapEntry

MIB = 1 << 20


class Memory:
    """Guest memory of 16 MiB with the usual map."""

    low_ram_bytes = 16 * MIB

    def __init__(self) -> None:
        self.data = memoryview(bytearray(self.low_ram_bytes))

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        return self.data[gpa : gpa + size_bytes]

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        self.data[gpa : gpa + len(data)] = data

    def map(self) -> list[MemmapEntry]:
        return [
            MemmapEntry(Gpa(0), 0xA0000, E820.RAM),
            MemmapEntry(Gpa(0xA0000), 0x60000, E820.RESERVED),
            MemmapEntry(Gpa(MIB), 15 * MIB, E820.RAM),
        ]


class HostBacked(Memory):
    """The same, in memory of the host's that pages can move to."""

    def __init__(self) -> None:
        self.host = HostMemory(self.low_ram_bytes, huge_pages=True)
        self.data = self.host.view

    def take(self, gpa: int, other: HostMemory, start_bytes: int, size_bytes: int) -> None:
        self.host.take(gpa, other, start_bytes, size_bytes)


@pytest.mark.parametrize("shared", [False, True], ids=["each its own bytes", "the same bytes twice"])
def test_segments_of_an_unpacked_kernel_arrive_whole(*, shared: bool) -> None:
    one, two = (bytes([value]) * (4 * MIB) for value in (0x11, 0x22))
    file = bytearray(elf([Load(2 * MIB, one), Load(8 * MIB, two)], note(2 * MIB)))
    offset = file.index(one[:64])
    for row, gpa in ((64, 2 * MIB), (64 + 56, 8 * MIB)):  # addresses that agree with the offsets, as a linker makes them
        struct.pack_into("<QQ", file, row + 16, gpa + offset, gpa + offset)
    if shared:
        struct.pack_into("<Q", file, 64 + 56 + 8, offset)
    struct.pack_into("<I", file, len(file) - 4, 2 * MIB + offset)
    unpacked = Unpacked(len(file), 1 << 30)
    unpacked.append(bytes(file))
    memory = HostBacked()
    pvh.load(memory, ElfImage(unpacked, "image"), "", [], rsdp=0)
    assert bytes(memory.view(2 * MIB + offset, len(one))) == one
    assert bytes(memory.view(8 * MIB + offset, len(two))) == (one if shared else two)
    assert not any(memory.view(0, 2 * MIB + offset))
    memory.host.close()


def test_start_info_leads_to_modules_command_line_and_map() -> None:
    memory = Memory()
    modules = [pvh.Module("one", memoryview(b"first"), "text"), pvh.Module("two", memoryview(b"second"))]
    entry = pvh.load(memory, ElfImage(good(), "image"), "console=hvc0", modules, rsdp=0xFC008000)
    assert entry.eip == 0x100000
    info = HvmStartInfo.unpack(memory.view(entry.ebx, HvmStartInfo.sizeof()))
    assert (info.magic, info.version, info.nr_modules, info.rsdp_paddr) == (0x336EC578, 1, 2, 0xFC008000)
    assert bytes(memory.view(info.cmdline_paddr, 13)) == b"console=hvc0\0"
    size = HvmModlistEntry.sizeof()
    listed = [HvmModlistEntry.unpack(memory.view(info.modlist_paddr + n * size, size)) for n in range(2)]
    assert bytes(memory.view(listed[0].paddr, listed[0].size)) == b"first"
    assert bytes(memory.view(listed[0].cmdline_paddr, 5)) == b"text\0"
    assert listed[1].cmdline_paddr == 0
    size = HvmMemmapEntry.sizeof()
    found = [HvmMemmapEntry.unpack(memory.view(info.memmap_paddr + n * size, size)) for n in range(info.memmap_entries)]
    assert [(row.addr, row.size, row.type) for row in found] == [tuple(row) for row in memory.map()]


def test_what_a_kernel_reads_first_lies_next_to_it_however_long_the_modules_are() -> None:
    memory = Memory()
    image = ElfImage(elf([Load(0x100000, b"\xf4" * 5000, 9000)], note(0x100000)), "image")
    modules = [pvh.Module(name, memoryview(bytes(100 << 10)), "text") for name in ("one", "two")]
    entry = pvh.load(memory, image, "x", modules, rsdp=0)
    info = HvmStartInfo.unpack(memory.view(entry.ebx, HvmStartInfo.sizeof()))
    size = HvmModlistEntry.sizeof()
    listed = [HvmModlistEntry.unpack(memory.view(info.modlist_paddr + n * size, size)) for n in range(2)]
    read = [entry.ebx, info.cmdline_paddr, info.modlist_paddr, info.memmap_paddr, *(row.cmdline_paddr for row in listed)]
    assert max(read) < min(row.paddr for row in listed)
    assert max(read) < 0x100000 + 9000 + 0x10000


def test_nothing_that_is_placed_overlaps_the_image() -> None:
    memory = Memory()
    image = ElfImage(elf([Load(0x100000, b"\xf4" * 5000, 9000)], note(0x100000)), "image")
    entry = pvh.load(memory, image, "x", [pvh.Module("m", memoryview(b"\x55" * 100))], rsdp=0)
    info = HvmStartInfo.unpack(memory.view(entry.ebx, HvmStartInfo.sizeof()))
    assert bytes(memory.view(0x100000, 5000)) == b"\xf4" * 5000
    assert min(entry.ebx, info.cmdline_paddr, info.modlist_paddr, info.memmap_paddr) >= 0x100000 + 9000


@pytest.mark.parametrize(
    ("loads", "text", "module", "reason"),
    [
        ([Load(0x100000, b"x", 64 * MIB)], "", b"", "is not RAM of this guest"),
        ([Load(0x9F000, b"x", 8192), Load(0x100000, b"x")], "", b"", "is not RAM of this guest"),
        ([Load(1 << 40, b"x"), Load(0x100000, b"x")], "", b"", "is not RAM of this guest"),
        ([Load(0x100000, b"x")], "y" * 4096, b"", "at most 4095 fit"),
        ([Load(0x100000, b"x")], "a\0b", b"", "zero byte"),
        ([Load(0x100000, b"x")], "", b"z" * (16 * MIB), "does not fit into the guest's memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(loads: list[Load], text: str, module: bytes, reason: str) -> None:
    modules = [pvh.Module("the initrd", memoryview(module))] if module else []
    with pytest.raises(ImageError, match=reason):
        pvh.load(Memory(), ElfImage(elf(loads, note(0x100000)), "image"), text, modules, rsdp=0)


# ------------------------------------------------------------------------------------------------- ACPI

# The FADT that Xen 4.17 gives a PVH domU, without its checksum and the DSDT's address, which depend on the rest.
FADT_OF_THE_REFERENCE = """
46414350 0c010000 05f15865 6e000000 48564d00 00000000 00000000 48564d4c
00000000 001000fc 401000fc 00000900 00000000 00000000 00b00000 00000000
04b00000 00000000 00000000 00000000 e0af0000 00000000 04020000 04000000
ff0fff0f 00000000 00000000 00240000 75810000 01080000 f90c0000 00000000
06000000 001000fc 00000000 401000fc 00000000 01200000 00b00000 00000000
00000000 00000000 00000000 01100000 04b00000 00000000
"""


def tables(vcpus: int, *, pc: bool = False) -> dict[bytes, bytes]:
    """The tables by signature, found as a guest finds them: RSDP, XSDT, then each address."""
    memory = acpi.build(vcpus, pc=pc)

    def at(address: int, size: int) -> bytes:
        return memory[address - acpi.ACPI_BASE :][:size]

    def table(address: int) -> bytes:
        return at(address, struct.unpack("<I", at(address + 4, 4))[0])

    rsdp = at(acpi.RSDP_ADDRESS, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) % 256 == sum(rsdp) % 256 == 0
    xsdt = table(struct.unpack("<Q", rsdp[24:32])[0])
    found = {b"XSDT": xsdt}
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        found[table(address)[:4]] = table(address)
    facs, dsdt = struct.unpack("<II", found[b"FACP"][36:44])
    return {**found, b"DSDT": table(dsdt), b"FACS": table(facs)}


def test_tables_are_found_and_their_checksums_hold() -> None:
    found = tables(2)
    assert set(found) == {b"XSDT", b"FACP", b"APIC", b"DSDT", b"FACS"}
    for signature, table in found.items():
        assert signature == b"FACS" or sum(table) % 256 == 0, signature


def test_fadt_is_the_references() -> None:
    expected = bytes.fromhex(FADT_OF_THE_REFERENCE).ljust(268, b"\0")
    found = tables(1)[b"FACP"]
    assert [n for n in range(268) if found[n] != expected[n] and n != 9] == []


def test_madt_is_the_references_for_one_and_two_vcpus() -> None:
    one = "41504943340000000200 58656e000000 48564d0000000000 00000000 48564d4c 00000000 0000e0fe 01000000 0008000001000000"
    two = one.replace("4150494334", "415049433c") + "0008010201000000"
    for vcpus, expected in ((1, one), (2, two)):
        found = bytearray(tables(vcpus)[b"APIC"])
        found[9] = 0
        assert found == bytes.fromhex(expected)


def test_a_pc_has_an_ioapic_its_configuration_space_and_no_8259() -> None:
    found = tables(2, pc=True)
    madt = found[b"APIC"]
    assert madt[40:44] == bytes(4)  # Linux looks for an 8259 and its timer where this says that there is one
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert [entry[0] for entry in entries] == [0, 0, 1, 2]
    assert struct.unpack("<II", entries[2][4:]) == (acpi.IOAPIC_ADDRESS, 0)
    assert struct.unpack("<BBIH", entries[3][2:]) == (0, 9, 9, 0xD)
    assert struct.unpack("<QHBB", found[b"MCFG"][44:56]) == (acpi.ECAM_BASE, 0, 0, 255)
    boot_flags = struct.unpack_from("<H", found[b"FACP"], 109)[0]
    assert (boot_flags & 1 << 5, boot_flags & 1 << 1, found[b"FACP"][108]) == (0, 2, 0x32)  # a clock, an i8042, a century


@pytest.mark.parametrize("pc", [False, True], ids=["domU", "dom0"])
@pytest.mark.parametrize("vcpus", [1, 2, 128])
def test_iasl_reads_the_tables_and_compiles_the_dsdt_again(vcpus: int, pc: bool, tmp_path: Path) -> None:
    assert shutil.which("iasl"), "install acpica-tools: its compiler is what the tables are checked with"
    found = tables(vcpus, pc=pc)
    for signature in (b"DSDT", b"FACP", b"APIC", b"XSDT", *([b"MCFG"] if pc else [])):
        path = tmp_path / f"{signature.decode()}.aml"
        path.write_bytes(found[signature])
        done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        text = path.with_suffix(".dsl").read_text()
        assert "Invalid" not in text
        assert "ERROR" not in text
    compiled = subprocess.run(["iasl", tmp_path / "DSDT.dsl"], capture_output=True, text=True, check=False)
    assert " 0 Errors" in compiled.stdout, compiled.stdout
    source = (tmp_path / "DSDT.dsl").read_text()
    assert re.findall(r"Processor \(P(\d{3}), 0x(..)", source) == [(f"{n:03}", f"{n:02X}") for n in range(vcpus)]
    for text in ("PNP0A08", "PNP0B00", "PNP0303", "PNP0F13", "PNP0C02", "0xF0000000", "0xFBFFFFFF"):
        assert (text in source) == pc, text


# ------------------------------------------------------------------------------------------------ CPUID


def test_time_leaf_scale_is_the_references() -> None:
    assert tsc_scale(0x27AC40) == (0xC4EC4EC4, -1)


def test_guest_cpuid_names_xen_and_hides_what_xen_hides() -> None:
    every = 0xFFFFFFFF
    host = [CpuidEntry(leaf, None, every, every, every, every) for leaf in (1, 0xA, 0x40000000, 0x40000001, 0x80000007)]
    leaves = guest_cpuid(host, vcpu=3, vcpus=4, domid=9, version=(4, 17), tsc_khz=2_000_000)
    by_number = {leaf.function: leaf for leaf in leaves if leaf.subleaf in (None, 0)}
    assert by_number[1].ebx >> 24 == 6
    assert by_number[1].ecx >> 24 & 1 == 0
    assert by_number[1].ecx >> 31 == 1
    assert by_number[0xA][2:] == by_number[0x80000007][2:] == (0, 0, 0, 0)
    assert struct.pack("<III", *by_number[0x40000000][3:]) == b"XenVMMXenVMM"
    assert by_number[0x40000004][2:] == (0x5C, 3, 9, 0)
    assert sum(leaf.function == 0x40000001 for leaf in leaves) == 1


def test_guest_cpuid_has_umip_only_where_the_hosts_cpu_has() -> None:
    host = [CpuidEntry(7, 0, 1, 0, 1 << 2 | 1 << 22, 0), CpuidEntry(7, 1, 0, 0, 1 << 2, 0)]
    for has_umip in (True, False):
        leaves = guest_cpuid(host, vcpu=0, vcpus=1, domid=1, version=(4, 17), tsc_khz=1, has_umip=has_umip)
        assert leaves[0].ecx == (1 << 2 if has_umip else 0) | 1 << 22
        assert leaves[1].ecx == 1 << 2, "another leaf's bit"


def test_guest_cpuid_has_the_processors_name() -> None:
    host = [CpuidEntry(0x80000003, None, 1, 2, 3, 4)]  # which KVM leaves empty, if it has it
    leaves = guest_cpuid(host, vcpu=0, vcpus=1, domid=1, version=(4, 17), tsc_khz=1, brand=b"A CPU, 1 GHz" + b"x" * 40)
    named = [leaf for leaf in leaves if leaf.function in range(0x80000002, 0x80000005)]
    assert [leaf.function for leaf in named] == [0x80000002, 0x80000003, 0x80000004]
    text = b"".join(struct.pack("<4I", *leaf[2:]) for leaf in named)
    assert text == b"A CPU, 1 GHz" + b"x" * 35 + b"\0"
    assert guest_cpuid(host, vcpu=0, vcpus=1, domid=1, version=(4, 17), tsc_khz=1)[0].ebx == 2
    assert "\n" not in first_cpu("model name")


# ------------------------------------------------------------------------------------------- initramfs


def test_cpio_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = CpioWriter()
    archive.folder("bin")
    archive.file("bin/tool", b"content", 0o755)
    archive.symlink("bin/link", "tool")
    archive.character_device("console", 5, 1)
    (tmp_path / "archive").write_bytes(archive.finish())
    busybox = Path("/bin/busybox")
    assert busybox.exists(), "install busybox-static: its cpio reads what was written"
    with open(tmp_path / "archive", "rb") as stream:
        listed = subprocess.run([busybox, "cpio", "-tv"], stdin=stream, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^drwxr-xr-x.* bin$", listed, re.M)
    assert re.search(r"^-rwxr-xr-x.* 7 .* bin/tool$", listed, re.M)
    assert re.search(r"^lrwxrwxrwx.* bin/link -> tool$", listed, re.M)
    assert re.search(r"^crw-------.* console$", listed, re.M)
