"""What a kernel does for its processes (lmbench's operations): as a PVH guest, under plain KVM, under QEMU's Xen emulation.

Needs VT-x or AMD-V, and KVM_XEN: `ci/nested --kernel 6.12 -- scripts/bench --runs 5 guest`.
"""

import tempfile
from pathlib import Path

from scripts.benchmarks.devices import compiled, initramfs, results
from scripts.benchmarks.monitors import pyvmm, qemu_microvm, qemu_xen
from scripts.benchmarks.table import Row

WITHIN = 1.05


def measure(runs: int) -> list[Row]:
    """Interleaved guests; microseconds, and ratios run by run."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        here = Path(folder)
        initrd = initramfs(compiled("guestops", here), None, "guestops\n", here)
        monitors = [pyvmm(initrd), qemu_microvm(initrd), qemu_xen(initrd)]
        found: dict[str, list[dict[str, float]]] = {monitor.name: [] for monitor in monitors}
        for _ in range(runs):
            for monitor in monitors:
                found[monitor.name].append(results(monitor))
    ours, plain, xen = found.values()
    rows = []
    for name in ours[0]:
        rows.append(Row(f"{name}: pyvmm", [one[name] for one in ours], "us"))
        rows.append(Row(f"{name}: to plain KVM", _ratios(ours, plain, name), "times", WITHIN))
        rows.append(Row(f"{name}: to QEMU's Xen emulation", _ratios(ours, xen, name), "times"))
    return rows


def _ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> list[float]:
    return [one[name] / other[name] for one, other in zip(ours, theirs, strict=True)]
