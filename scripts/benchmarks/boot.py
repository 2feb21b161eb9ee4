"""From exec to the guest's /init and what the process holds then: Debian 6.1 cloud, 256 MiB, 1 vCPU, against QEMU.

Each on files and memory as `near` has them.  Needs VT-x or AMD-V, and KVM_XEN for QEMU's Xen emulation:
`ci/nested --kernel 6.12 -- scripts/bench --runs 5 boot`.
"""

import os
import re
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.monitors import Monitor, folders, kernel, pyvmm, qemu_microvm, qemu_xen
from scripts.benchmarks.near import near, renew_memory
from scripts.benchmarks.table import Row
from vmm.boot.cpio import CpioWriter
from vmm.boot.initramfs import find_busybox

MARK = b"/init is running"
TIMEOUT_S = 400
SETTLE_S, IDLE_S = 2, 5
SEVERAL = 8
VCPUS = (2, 4)
INIT = f"#!/bin/busybox sh\necho '{MARK.decode()}'\n/bin/busybox sleep 1000\n"


class Boot(NamedTuple):
    """One boot: seconds to the mark; then MiB resident in mappings that are not the guest's RAM, and % of a CPU used."""

    seconds: float
    resident_mib: float
    idle_percent: float


def measure(runs: int) -> list[Row]:
    """Interleaved boots."""
    with near(folders()):
        return _measure(runs)


def _measure(runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(initramfs())
        monitors = _monitors(initrd)
        boots: dict[str, list[Boot]] = {monitor.name: [] for monitor in monitors}
        for run in range(runs):
            for monitor in monitors if run % 2 == 0 else reversed(monitors):  # each comes after one, then after another
                boots[monitor.name].append(_boot(monitor))
    rows = [Row(name, [boot.seconds for boot in done], "s") for name, done in boots.items()]
    zipped, plain, xen, microvm = (boots[monitor.name] for monitor in monitors)
    rows.append(Row("pyvmm to QEMU's Xen emulation, vmlinuz", _ratios(zipped, xen), "times", 0.9))
    rows.append(Row("pyvmm to QEMU microvm, vmlinux", _ratios(plain, microvm), "times", 1.3))
    for name, done in boots.items():
        rows.append(Row(f"{name}: resident beside RAM", [boot.resident_mib for boot in done], "MiB"))
    for name, done in boots.items():
        limit = 1.0 if name.startswith("pyvmm") else None
        rows.append(Row(f"{name}: of a CPU, asleep", [boot.idle_percent for boot in done], "%", limit))
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(initramfs())
        for count in VCPUS:
            one = pyvmm(initrd, "-c", str(count)), qemu_xen(initrd, "-smp", str(count))
            times = [[_boot(monitor).seconds for monitor in one] for _ in range(runs)]
            rows.append(Row(f"pyvmm, {count} vCPUs", [ours for ours, _ in times], "s"))
            rows.append(
                Row(f"pyvmm to QEMU's Xen emulation, {count} vCPUs", [ours / theirs for ours, theirs in times], "times")
            )
        rows += _phases(initrd)
        rows += _several(pyvmm(initrd))
    beside = [ours.resident_mib / theirs.resident_mib for ours, theirs in zip(zipped, xen, strict=True)]
    rows.append(Row("resident beside RAM, pyvmm to QEMU's Xen emulation", beside, "times", 1.0))
    return rows


def _phases(initrd: Path) -> list[Row]:
    """One boot that is not quiet: when the console shows what."""
    monitor = pyvmm(initrd)
    command = [word.removesuffix(" quiet") for word in monitor.command]
    marks = {b"Linux version": "the kernel's first line", b"Run /init": "Run /init", MARK: "/init's own line"}
    rows = []
    with subprocess.Popen(command, env=monitor.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        start = time.monotonic()
        try:
            for mark, name in marks.items():
                if mark not in _until_mark(process, start, mark):
                    raise SystemExit(f"pyvmm's guest did not show {mark!r}")
                rows.append(Row(f"pyvmm, not quiet: exec to {name}", [time.monotonic() - start], "s"))
        finally:
            process.kill()
    return rows


def _several(monitor: Monitor) -> list[Row]:
    """Many guests at once: until the last is there, and what each process has to itself (Pss) beside its guest's RAM."""
    renew_memory()
    start = time.monotonic()
    processes = [
        subprocess.Popen(monitor.command, env=monitor.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(SEVERAL)
    ]
    try:
        for process in processes:
            if MARK not in _until_mark(process, start):
                raise SystemExit(f"not all of {SEVERAL} guests reached /init in {TIMEOUT_S} s")
        seconds = time.monotonic() - start
        mib = [_resident_mib(process.pid, "Pss") for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [
        Row(f"pyvmm, {SEVERAL} guests at once: until all are there", [seconds], "s"),
        Row(f"pyvmm, {SEVERAL} guests at once: each beside RAM, shared pages divided", mib, "MiB"),
    ]


def _ratios(ours: list[Boot], theirs: list[Boot]) -> list[float]:
    return [one.seconds / other.seconds for one, other in zip(ours, theirs, strict=True)]


def initramfs() -> bytes:
    """An /init that prints `MARK` and sleeps."""
    archive = CpioWriter()
    for place in ("bin", "dev"):
        archive.folder(place)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", find_busybox().read_bytes(), 0o755)
    archive.file("init", INIT.encode(), 0o755)
    return archive.finish()


def _monitors(initrd: Path) -> list[Monitor]:
    return [
        pyvmm(initrd)._replace(name="pyvmm, vmlinuz"),
        pyvmm(initrd, image=kernel("--vmlinux"))._replace(name="pyvmm, vmlinux"),
        qemu_xen(initrd)._replace(name="QEMU's Xen emulation, vmlinuz"),
        qemu_microvm(initrd)._replace(name="QEMU microvm, vmlinux"),
    ]


def _boot(monitor: Monitor) -> Boot:
    renew_memory()
    start = time.monotonic()
    with subprocess.Popen(
        monitor.command, env=monitor.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said = _until_mark(process, start)
            seconds = time.monotonic() - start
            if MARK not in said:
                raise SystemExit(f"{monitor.name} did not reach /init: {said[-1000:].decode(errors='replace')}")
            return Boot(seconds, _resident_mib(process.pid), _idle_percent(process.pid))
        finally:
            process.kill()


def _until_mark(process: "subprocess.Popen[bytes]", start: float, mark: bytes = MARK) -> bytes:
    assert process.stdout is not None
    said, output = b"", process.stdout.fileno()
    while mark not in said and (left := start + TIMEOUT_S - time.monotonic()) > 0:
        if select.select([output], [], [], left)[0]:
            chunk = os.read(output, 65536)
            if not chunk:
                break
            said += chunk
    return said


def _resident_mib(pid: int, field: str = "Rss") -> float:
    """Of all mappings but the guest's RAM, for which monitors ask for huge pages ("hg")."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    mappings = re.findall(rf"^{field}: +(\d+) kB.*?^VmFlags: ([^\n]*)$", smaps, re.MULTILINE | re.DOTALL)
    return sum(int(resident) for resident, flags in mappings if "hg" not in flags.split()) / 1024


def _idle_percent(pid: int) -> float:
    def used_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(SETTLE_S)
    before = used_s()
    time.sleep(IDLE_S)
    return 100 * (used_s() - before) / IDLE_S
