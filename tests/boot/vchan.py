"""A dom0 that runs Debian's xenstored, a guest beside it, and a vchan (`vchan.c`) between the two."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.commands import pyvmm
from vmm.boot.initramfs import busybox_initramfs
from vmm.boot.modules import ModuleFolder

SOURCE = Path(__file__).with_name("vchan.c")
LIBRARIES = ("xenvchan", "xenstore", "xengnttab", "xenevtchn", "xentoollog", "xentoolcore", "pthread", "dl")

# A toolstack's part, with what Debian has: xenstored, and the nodes that let the guest write its own.
INTRODUCE = """
exec 2>&1
mkdir -p /run/xen /run/xenstored
/usr/lib/xen-4.17/bin/xenstored
until [ -S /run/xenstored/socket ]; do sleep 0.1; done
python3 -c "
import ctypes
xs = ctypes.CDLL('libxenstore.so.4')
xs.xs_open.restype = ctypes.c_void_p
print('introduced', xs.xs_introduce_domain(ctypes.c_void_p(xs.xs_open(0)), 1, ctypes.c_ulong(0xfeffc), 1))
"
xenstore-write /local/domain/1/domid 1 /local/domain/1/name beside /local/domain/1/data ''
xenstore-chmod /local/domain/1 n0 r1
xenstore-chmod /local/domain/1/domid n0 r1
xenstore-chmod /local/domain/1/data n1
"""
# The guest's kernel has its xenstore once xenstored has rung.
BESIDE = """
until grep -q ' [1-9][0-9]* .*xenbus' /proc/interrupts; do sleep 0.2; done
until [ -e /dev/xen/gntalloc ]; do sleep 0.2; done
sleep 2
vchan server 0 data/vchan {bytes} {rounds}
sleep 1000
"""


class Kernels(NamedTuple):
    """What dom0 and the guest boot, and their modules."""

    dom0: Path
    dom0_modules: Path
    guest: Path
    guest_modules: Path


class Carried(NamedTuple):
    """How it ended: dom0's exit status and complaints, and what each of the two printed."""

    status: int
    errors: str
    dom0: str
    guest: str


def carry(
    kernels: Kernels, disk: Path, folder: Path, *, bytes_sent: int, rounds: int, before: str = "", timeout_s: float
) -> Carried:
    """Send so many bytes from the guest to dom0, then single ones there and back; `disk` is written to."""
    program, initrd, guest, console = (folder / name for name in ("vchan", "initrd", "guest", "console"))
    libraries = [f"-l{name}" for name in LIBRARIES]
    command = ["gcc", "-O2", "-static", "-w", "-o", program, SOURCE, *libraries]
    subprocess.run(command, check=True, capture_output=True)
    for request in (f"write {program} /usr/bin/vchan", "sif /usr/bin/vchan mode 0100755"):
        subprocess.run(["debugfs", "-w", "-R", request, disk], check=True, capture_output=True)
    modules = ModuleFolder(kernels.guest_modules).closure(["xen_evtchn", "xen_gntdev", "xen_gntalloc"])
    script = BESIDE.format(bytes=bytes_sent, rounds=rounds)
    initrd.write_bytes(busybox_initramfs(script, {"bin/vchan": program.read_bytes()}, modules))
    options = f"--initrd {initrd} -m 256M --append quiet --console file:{console}"
    guest.write_text(f"# beside dom0\n{kernels.guest} {options}\n")
    client = f"vchan client 1 /local/domain/1/data/vchan {bytes_sent} {rounds}"
    done = pyvmm(
        "run", "--dom0", kernels.dom0, "--with-domu", guest, "--modules", kernels.dom0_modules, "-m", "768M",
        "--disk", disk, "--append", "quiet root=/dev/vda rw", "--timeout", timeout_s,
        "--exec", f"{INTRODUCE}\n{before}\n{client}\nstatus=$?\nxenstore-ls -fp /local/domain/1\nexit $status",
        timeout_s=timeout_s + 60,
    )  # fmt: skip
    return Carried(done.returncode, done.stderr, done.stdout, console.read_text())
