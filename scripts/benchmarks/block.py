"""A disk under direct I/O in the guest, pyvmm's against xen-disk of QEMU's Xen emulation, a raw file in memory for both.

Needs VT-x or AMD-V, and KVM_XEN: `ci/nested --kernel 6.12 -- scripts/bench --runs 5 block`.
"""

import tempfile
from pathlib import Path

from scripts.benchmarks.devices import compiled, contestants, initramfs, results
from scripts.benchmarks.table import Row

DISK_MIB, SECONDS = 128, 3
JOBS = {
    # name: (arguments of blockio, MiB a request or None for requests a second, least ratio to QEMU)
    "sequential-read-1M": ("read seq 1048576 4", 1.0, 1.0),
    "sequential-write-1M": ("write seq 1048576 4", 1.0, 1.0),
    "random-read-4K-depth-1": ("read random 4096 1", None, 0.8),
    "random-read-4K-depth-32": ("read random 4096 32", None, 0.8),
}


def measure(runs: int) -> list[Row]:
    """Interleaved guests, each with all jobs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        here = Path(folder)
        disk = here / "disk"
        disk.write_bytes(bytes(1 << 20) * DISK_MIB)
        script = "while [ ! -e /dev/xvda ]; do sleep 0.1; done\n"
        for name, (arguments, _, _) in JOBS.items():
            script += f"echo RESULT {name} $(blockio /dev/xvda {arguments} {SECONDS})\n"
        initrd = initramfs(compiled("blockio", here), "xen_blkfront", script, here)
        rivals = contestants(
            initrd,
            ["--disk", str(disk)],
            ["-drive", f"file={disk},if=none,id=d,format=raw,cache=writeback", "-device", "xen-disk,drive=d,vdev=xvda"],
        )
        found: dict[str, list[dict[str, float]]] = {rival.name: [] for rival in rivals}
        for _ in range(runs):
            for rival in rivals:
                found[rival.name].append(results(rival))
    ours, theirs = found.values()
    rows = []
    for name, (_, mib, least) in JOBS.items():
        unit = "MiB/s" if mib else "requests/s"
        rows += [Row(f"{name}: {who}", [one[name] for one in done], unit) for who, done in found.items()]
        ratios = [one[name] / other[name] for one, other in zip(ours, theirs, strict=True)]
        rows.append(Row(f"{name}: pyvmm to QEMU", ratios, "times", least=least))
    return rows
