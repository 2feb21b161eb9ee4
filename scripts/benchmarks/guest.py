"""What a kernel does for its processes (lmbench's operations): as a PVH guest, under plain KVM, under QEMU's Xen emulation.

Needs VT-x or AMD-V, and KVM_XEN: `ci/nested --kernel 6.12 -- scripts/bench --runs 5 guest`.
"""

import tempfile
from pathlib import Path

from scripts.benchmarks.devices import compiled, initramfs, results
from scripts.benchmarks.monitors import MEMORY_MIB, pyvmm, qemu_microvm, qemu_xen
from scripts.benchmarks.table import Row

WITHIN = 1.05
STEP_MIB = 24
"""Each time guests have so much more memory than before, and their kernel's pages other places: a TLB in which some of them
meet makes an operation up to 10 % slower in every guest of one size."""

SIZES_A_RUN = 2

MAKERS = (pyvmm, qemu_microvm, qemu_xen)


def measure(runs: int) -> list[Row]:
    """Interleaved guests; microseconds, and ratios run by run."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        here = Path(folder)
        initrd = initramfs(compiled("guestops", here), None, "guestops\n", here)
        found: list[list[dict[str, float]]] = [[], [], []]
        for step in range(runs * SIZES_A_RUN):
            for make, done in zip(MAKERS, found, strict=True):
                done.append(results(make(initrd, memory_mib=MEMORY_MIB + step * STEP_MIB)))
    ours, plain, xen = found
    rows = []
    for name in ours[0]:
        rows.append(Row(f"{name}: pyvmm", [one[name] for one in ours], "us"))
        rows.append(Row(f"{name}: to plain KVM", _ratios(ours, plain, name), "times", WITHIN))
        rows.append(Row(f"{name}: to QEMU's Xen emulation", _ratios(ours, xen, name), "times"))
    return rows


def _ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> list[float]:
    return [one[name] / other[name] for one, other in zip(ours, theirs, strict=True)]
