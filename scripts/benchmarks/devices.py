"""What the subjects `block` and `net` have in common: one kernel, one initramfs, pyvmm and QEMU's Xen emulation."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from vmm.boot.cpio import CpioWriter
from vmm.boot.initramfs import find_busybox
from vmm.boot.modules import ModuleFolder

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
MEMORY_MIB = 256
TIMEOUT_S = 300
RESULT = re.compile(r"^RESULT (\S+) ([\d.]+)\s*$", re.MULTILINE)


class Contestant(NamedTuple):
    """A monitor and the command line that gives its guest the device."""

    name: str
    command: list[str]
    environment: dict[str, str]


def compiled(name: str, folder: Path) -> Path:
    """A small static program of the benchmarks' own."""
    target = folder / name
    subprocess.run(["gcc", "-O2", "-static", "-o", target, HERE / f"{name}.c"], check=True)
    return target


def initramfs(program: Path, module: str, script: str, folder: Path) -> Path:
    """One whose /init loads a driver and runs a script that prints lines `RESULT NAME NUMBER`."""
    archive = CpioWriter()
    for place in ("bin", "dev", "proc", "sys", "modules"):
        archive.folder(place)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", find_busybox().read_bytes(), 0o755)
    archive.file(f"bin/{program.name}", program.read_bytes(), 0o755)
    loads = ""
    for name, content in ModuleFolder(kernel("--modules")).closure([module]):
        archive.file(f"modules/{name}", content)
        loads += f"insmod /modules/{name}\n"
    head = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n"
    mounts = "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n"
    archive.file("init", (head + mounts + loads + script + "poweroff -f\n").encode(), 0o755)
    path = folder / "initrd"
    path.write_bytes(archive.finish())
    return path


def kernel(*options: str) -> Path:
    """The Debian 6.1 cloud kernel, or what belongs to it."""
    done = subprocess.run([ROOT / "scripts/kernel", *options, "6.1"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def contestants(initrd: Path, pyvmm: list[str], qemu_options: list[str]) -> list[Contestant]:
    """pyvmm first."""
    sys.path.append(str(ROOT / "ci"))
    from qemu import qemu  # type: ignore[import-not-found]

    command, environment = qemu()
    command += [
        "-m", str(MEMORY_MIB), "-cpu", "host", "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
        "-M", "pc", "-accel", "kvm,xen-version=0x40011,kernel-irqchip=split", "-chardev", "stdio,id=console",
        "-device", "xen-console,chardev=console", "-kernel", str(kernel()), "-initrd", str(initrd),
        "-append", "console=hvc0 quiet", *qemu_options,
    ]  # fmt: skip
    own = [sys.executable, "-c", "import sys; from vmm.cli import main; sys.exit(main())", "run", str(kernel())]
    own += ["-m", str(MEMORY_MIB), "--initrd", str(initrd), "--append", "console=hvc0 quiet", *pyvmm]
    return [Contestant("pyvmm", own, dict(os.environ)), Contestant("QEMU's Xen emulation", command, environment)]


def results(contestant: Contestant) -> dict[str, float]:
    """Run its guest to the end: what it measured."""
    done = subprocess.run(
        contestant.command, env=contestant.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    found = {name: float(value) for name, value in RESULT.findall(done.stdout)}
    if not found:
        raise SystemExit(f"{contestant.name} measured nothing: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return found
