"""A real Xen in QEMU: Debian's hypervisor, Debian's Linux as dom0 over this machine's file system, and Xen's own tools.

QEMU is bookworm's 7.2: under 10, plain or mended, dom0 comes up, but a Linux domU never says a word.
"""

import argparse
import gzip
import shutil
from pathlib import Path
from typing import NamedTuple

from debian import CACHE, Kernel, Suite, unpack_once
from in_qemu import BOARD, carry_out, qemu_command, unpacked_qemu
from l1 import HERE, KERNEL_COMMAND_LINE, boot_files
from xen_guest import guest_job

MODULES = (
    "virtio_pci", "9pnet_virtio", "9p", "virtio_console", "overlay", "loop", "bridge",
    "xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-blkback", "xen-netback",
)  # fmt: skip
CPU = "max,+svm,-smap,-smep,-la57,-pku,-rdtscp"
"""Without what a PV dom0's first page walk does not bear (SMAP, SMEP), and what kills guests on emulated AMD-V (RDTSCP)."""
MEMORY = "4G"
XEN_COMMAND_LINE = "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all noreboot=1"
DOM0_MEMORY = "1536M"
WRITABLE = ("var/lib/xen", "var/lib/xenstored", "var/log/xen")


class Version(NamedTuple):
    """The suite that a version of Xen is in, and libraries that its tools need from there."""

    suite: str
    libraries: tuple[str, ...]


VERSIONS = {
    "4.17": Version("bookworm", ()),
    "4.20": Version("trixie", ("libc6", "libgcc-s1", "libzstd1", "libuuid1", "libblkid1")),
}


def hypervisor(version: str) -> Path:
    """The unpacked hypervisor, which QEMU loads by Multiboot."""

    def fill(folder: Path) -> None:
        suite = Suite(VERSIONS[version].suite)
        suite.unpack([f"xen-hypervisor-{version}-amd64"], folder)
        (folder / "xen").write_bytes(gzip.decompress((folder / f"boot/xen-{version}-amd64.gz").read_bytes()))

    return unpack_once(CACHE / f"xen-{version}", fill) / "xen"


def tools(version: str) -> Path:
    """A folder to lay over dom0's root: Xen's tools, their libraries, and small scripts for disks and cards."""

    def fill(folder: Path) -> None:
        found = VERSIONS[version]
        suite = Suite(found.suite)
        wanted = [
            name
            for name in suite.with_dependencies(f"xen-utils-{version}")
            if name.startswith(("xen", "libxen", "libyajl")) or name in found.libraries
        ]
        suite.unpack({f"xen-utils-{version}", "xen-utils-common", "xenstore-utils", *wanted}, folder)
        for name in ("bin", "sbin", "lib", "lib64"):  # the root below has links there
            if (folder / name).is_dir():
                shutil.copytree(folder / name, folder / "usr" / name, symlinks=True, dirs_exist_ok=True)
                shutil.rmtree(folder / name)
        for place in WRITABLE:
            (folder / place).mkdir(parents=True, exist_ok=True)
        for script in ("block", "vif-bridge"):  # Xen's own take 40 s of TCG for a disk, and time out
            shutil.copy(HERE / f"real-xen-{script}", folder / "etc/xen/scripts" / script)

    return unpack_once(CACHE / f"xen-tools-{version}", fill)


def run(options: argparse.Namespace, folder: Path) -> int:
    """The job, in dom0 of a Xen whose files are in `folder`: its exit status."""
    if options.command[0] == "run":
        options.command = guest_job(options.command[1:], folder)
    kernel = Kernel("6.1-generic").fetch()
    files = boot_files(kernel, MODULES, {})
    machine = qemu_command(place := unpacked_qemu("bookworm", "qemu-7.2"), place / "usr/bin/qemu-system-x86_64")
    over = tools(options.version)
    command_line = KERNEL_COMMAND_LINE.replace("ttyS0", "hvc0")
    xen = f"{XEN_COMMAND_LINE} dom0_mem={DOM0_MEMORY} {options.xen}".rstrip()
    more, device = [], ""
    if options.dom0 == "pvh":  # its devices' addresses are its own: they have to go through the IOMMU
        xen += " dom0=pvh iommu=1"
        more, device = ["-device", "amd-iommu"], ",iommu_platform=on,disable-legacy=on"
    command = [
        *machine[0], "-M", BOARD, "-accel", "tcg,thread=single", "-cpu", CPU, "-smp", str(options.smp), "-m", MEMORY, *more,
        "-kernel", str(hypervisor(options.version)), "-append", xen,
        "-initrd", f"{files}/kernel {command_line} l1=over,{files}/initramfs",
    ]  # fmt: skip
    options.command = [str(HERE / "real-xen-up"), options.version, *options.command]
    return carry_out(options, folder, f"dom0 (Xen {options.version})", command, machine[1], over, device)
