"""What subjects have in common whose guests measure by themselves: an initramfs, its results, their comparison."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.counted import RESULT_LINE
from scripts.benchmarks.monitors import Monitor, kernel
from scripts.benchmarks.table import Row
from vmm.boot.initramfs import busybox_initramfs
from vmm.boot.modules import ModuleFolder
from vmm.xenabi.constants import PAGE_BYTES

HERE = Path(__file__).parent
TIMEOUT_S = 300


def compiled(name: str, folder: Path) -> Path:
    """A small static program of the benchmarks' own."""
    target = folder / name
    subprocess.run(["gcc", "-O2", "-static", "-o", target, HERE / f"{name}.c"], check=True)
    return target


def initramfs(program: Path, module: str | None, script: str, folder: Path) -> Path:
    """One whose /init loads a driver, if any, and runs a script that prints lines `RESULT NAME NUMBER`."""
    modules = ModuleFolder(kernel("--modules")).closure([module]) if module is not None else []
    path = folder / "initrd"
    archive = busybox_initramfs(script + "poweroff -f\n", {f"bin/{program.name}": program.read_bytes()}, modules)
    path.write_bytes(archive + bytes(-len(archive) % PAGE_BYTES))  # QEMU's microvm hangs if the last page is almost full
    return path


class Promise(NamedTuple):
    """A result by its name, its unit, and what pyvmm's is at least, in times of QEMU's."""

    name: str
    unit: str
    least: float


def compare(runs: int, rivals: list[Monitor], promises: list[Promise]) -> list[Row]:
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


def results(monitor: Monitor) -> dict[str, float]:
    """Run its guest to the end: what it measured."""
    done = subprocess.run(
        monitor.command, env=monitor.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    found = {name: float(value) for name, value in RESULT_LINE.findall(done.stdout)}
    if not found:
        raise SystemExit(f"{monitor.name} measured nothing: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return found
