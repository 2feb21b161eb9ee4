"""The monitors that are compared, with one kernel and initramfs: pyvmm, QEMU's Xen emulation, QEMU microvm (plain KVM)."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "ci"))
MEMORY_MIB = 256
XEN_ACCELERATOR = "kvm,xen-version=0x40011,kernel-irqchip=split"


class Monitor(NamedTuple):
    """A way to boot the kernel."""

    name: str
    command: list[str]
    environment: dict[str, str]


def kernel(*options: str) -> Path:
    """The Debian 6.1 cloud kernel, or what belongs to it."""
    done = subprocess.run([ROOT / "scripts/kernel", *options, "6.1"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def pyvmm(initrd: Path, *options: str, image: Path | None = None, memory_mib: int = MEMORY_MIB) -> Monitor:
    """From its own sources."""
    command = [sys.executable, "-c", "import sys; from vmm.cli.main import main; sys.exit(main())", "run", "--pvh"]
    command += ["-m", str(memory_mib), "--initrd", str(initrd), "--append", "console=hvc0 quiet", *options]
    return Monitor("pyvmm", [*command, str(image or kernel())], dict(os.environ))


def qemu_xen(initrd: Path, *options: str, memory_mib: int = MEMORY_MIB) -> Monitor:
    """QEMU 10 as Xen HVM."""
    command, environment = _qemu(initrd, memory_mib)
    command += ["-M", "pc", "-accel", XEN_ACCELERATOR, "-kernel", str(kernel()), "-append", "console=hvc0 quiet"]
    return Monitor("QEMU's Xen emulation", [*command, "-device", "xen-console,chardev=console", *options], environment)


def qemu_kvm(initrd: Path, *options: str, memory_mib: int = MEMORY_MIB) -> Monitor:
    """QEMU 10's PC: plain KVM, entered by its boot loader's protocol, without Xen."""
    command, environment = _qemu(initrd, memory_mib)
    command += ["-M", "pc", "-accel", "kvm", "-kernel", str(kernel()), "-append", "console=ttyS0 quiet"]
    return Monitor("QEMU on plain KVM", [*command, "-serial", "chardev:console", *options], environment)


def qemu_microvm(initrd: Path, *options: str, memory_mib: int = MEMORY_MIB) -> Monitor:
    """QEMU 10's microvm: plain KVM, entered by PVH, without Xen."""
    command, environment = _qemu(initrd, memory_mib)
    command += ["-M", "microvm", "-accel", "kvm", "-kernel", str(kernel("--vmlinux")), "-append", "console=ttyS0 quiet"]
    return Monitor("QEMU microvm", [*command, "-serial", "chardev:console", *options], environment)


def folders() -> list[Path]:
    """Where the monitors and the kernels are read from."""
    from debian import CACHE  # type: ignore[import-not-found]
    from in_qemu import qemu  # type: ignore[import-not-found]

    packages = sysconfig.get_paths()
    own = [Path(packages["stdlib"]), Path(packages["purelib"]), ROOT / "vmm"]
    return [*own, CACHE / "qemu", Path(qemu()[0][0]).parent, kernel().parent, kernel("--vmlinux").parent]


def _qemu(initrd: Path, memory_mib: int) -> tuple[list[str], dict[str, str]]:
    from in_qemu import qemu

    command, environment = qemu()
    command += [
        "-m", str(memory_mib), "-cpu", "host", "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
        "-initrd", str(initrd), "-chardev", "stdio,id=console",
    ]  # fmt: skip
    return command, environment
