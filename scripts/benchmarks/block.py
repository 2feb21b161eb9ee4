"""A disk under direct I/O in the guest, pyvmm's against xen-disk of QEMU's Xen emulation, a raw file in memory for both.

Needs VT-x or AMD-V, and KVM_XEN: `ci/nested --kernel 6.12 -- scripts/bench --runs 5 block`.
"""

import tempfile
from pathlib import Path

from scripts.benchmarks.devices import Promise, compare, compiled, initramfs
from scripts.benchmarks.monitors import pyvmm, qemu_xen
from scripts.benchmarks.table import Row

DISK_MIB, SECONDS = 128, 3
JOBS = {  # arguments of blockio
    "sequential-read-1M": "read seq 1048576 4",
    "sequential-write-1M": "write seq 1048576 4",
    "random-read-4K-depth-1": "read random 4096 1",
    "random-read-4K-depth-32": "read random 4096 32",
}
PROMISES = [
    Promise("sequential-read-1M", "MiB/s", 1.0),
    Promise("sequential-write-1M", "MiB/s", 1.0),
    Promise("random-read-4K-depth-1", "requests/s", 0.8),
    Promise("random-read-4K-depth-32", "requests/s", 0.8),
]


def measure(runs: int) -> list[Row]:
    """Interleaved guests, each with all jobs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        here = Path(folder)
        disk = here / "disk"
        disk.write_bytes(bytes(1 << 20) * DISK_MIB)
        script = "while [ ! -e /dev/xvda ]; do sleep 0.1; done\n"
        for name, arguments in JOBS.items():
            script += f"echo RESULT {name} $(blockio /dev/xvda {arguments} {SECONDS})\n"
        initrd = initramfs(compiled("blockio", here), "xen_blkfront", script, here)
        drive = f"file={disk},if=none,id=d,format=raw,cache=writeback"
        rivals = [
            pyvmm(initrd, "--disk", str(disk)),
            qemu_xen(initrd, "-drive", drive, "-device", "xen-disk,drive=d,vdev=xvda"),
        ]
        return compare(runs, rivals, PROMISES)
