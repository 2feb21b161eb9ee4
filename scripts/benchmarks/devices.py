"""What the subjects `block` and `net` have in common: one kernel, one initramfs, pyvmm and QEMU's Xen emulation."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.table import Row
from vmm.boot.initramfs import busybox_initramfs
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
    modules = ModuleFolder(kernel("--modules")).closure([module])
    path = folder / "initrd"
    path.write_bytes(busybox_initramfs(script + "poweroff -f\n", {f"bin/{program.name}": program.read_bytes()}, modules))
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


class Promise(NamedTuple):
    """A result by its name, its unit, and what pyvmm's is at least, in times of QEMU's."""

    name: str
    unit: str
    least: float


def compare(runs: int, rivals: list[Contestant], promises: list[Promise]) -> list[Row]:
    """Interleaved guests, each with all that it measures."""
    found: dict[str, list[dict[str, float]]] = {rival.name: [] for rival in rivals}
    for _ in range(runs):
        for rival in rivals:
            found[rival.name].append(results(rival))
    ours, theirs = found.values()
    rows = []
    for name, unit, least in promises:
        rows += [Row(f"{name}: {who}", [one[name] for one in done], unit) for who, done in found.items()]
        ratios = [one[name] / other[name] for one, other in zip(ours, theirs, strict=True)]
        rows.append(Row(f"{name}: pyvmm to QEMU", ratios, "times", least=least))
    return rows


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
