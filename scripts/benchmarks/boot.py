"""From exec to the guest's /init and what the process holds then: Debian 6.1 cloud, 256 MiB, 1 vCPU, against QEMU.

Needs VT-x or AMD-V, and KVM_XEN for QEMU's Xen emulation: `ci/nested --kernel 6.12 -- scripts/bench --runs 5 boot`.
"""

import os
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks.devices import kernel
from scripts.benchmarks.table import Row
from vmm.boot.cpio import CpioWriter
from vmm.boot.initramfs import find_busybox

ROOT = Path(__file__).resolve().parents[2]
MARK = b"/init is running"
MEMORY_MIB = 256
TIMEOUT_S = 120
SETTLE_S, IDLE_S = 2, 5
INIT = f"#!/bin/busybox sh\necho '{MARK.decode()}'\n/bin/busybox sleep 1000\n"


class Monitor(NamedTuple):
    """A way to boot the kernel."""

    name: str
    command: list[str]
    environment: dict[str, str] | None = None


class Boot(NamedTuple):
    """One boot: seconds to the mark; then MiB resident in mappings that are not the guest's RAM, and % of a CPU used."""

    seconds: float
    resident_mib: float
    idle_percent: float


def measure(runs: int) -> list[Row]:
    """Interleaved boots."""
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(_initramfs())
        monitors = _monitors(initrd)
        boots: dict[str, list[Boot]] = {monitor.name: [] for monitor in monitors}
        for _ in range(runs):
            for monitor in monitors:
                boots[monitor.name].append(_boot(monitor))
    rows = [Row(name, [boot.seconds for boot in done], "s") for name, done in boots.items()]
    zipped, plain, xen, microvm = (boots[monitor.name] for monitor in monitors)
    rows.append(Row("pyvmm to QEMU's Xen emulation, vmlinuz", _ratios(zipped, xen), "times", 1.0))
    rows.append(Row("pyvmm to QEMU microvm, vmlinux", _ratios(plain, microvm), "times", 1.3))
    for name, done in boots.items():
        rows.append(Row(f"{name}: resident beside RAM", [boot.resident_mib for boot in done], "MiB"))
    for name, done in boots.items():
        limit = 1.0 if name.startswith("pyvmm") else None
        rows.append(Row(f"{name}: of a CPU, asleep", [boot.idle_percent for boot in done], "%", limit))
    beside = [ours.resident_mib / theirs.resident_mib for ours, theirs in zip(zipped, xen, strict=True)]
    rows.append(Row("resident beside RAM, pyvmm to QEMU's Xen emulation", beside, "times", 1.0))
    return rows


def _ratios(ours: list[Boot], theirs: list[Boot]) -> list[float]:
    return [one.seconds / other.seconds for one, other in zip(ours, theirs, strict=True)]


def _initramfs() -> bytes:
    archive = CpioWriter()
    for place in ("bin", "dev"):
        archive.folder(place)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", find_busybox().read_bytes(), 0o755)
    archive.file("init", INIT.encode(), 0o755)
    return archive.finish()


def _monitors(initrd: Path) -> list[Monitor]:
    vmlinuz, vmlinux = str(kernel()), str(kernel("--vmlinux"))
    sys.path.append(str(ROOT / "ci"))
    from qemu import qemu  # type: ignore[import-not-found]

    base, environment = qemu()
    base += [
        "-m", str(MEMORY_MIB), "-cpu", "host", "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
        "-initrd", str(initrd), "-chardev", "stdio,id=console",
    ]  # fmt: skip
    xen = [*base, "-M", "pc", "-accel", "kvm,xen-version=0x40011,kernel-irqchip=split", "-kernel", vmlinuz]
    xen += ["-device", "xen-console,chardev=console", "-append", "console=hvc0 quiet"]
    microvm = [*base, "-M", "microvm", "-accel", "kvm", "-kernel", vmlinux]
    microvm += ["-serial", "chardev:console", "-append", "console=ttyS0 quiet"]
    pyvmm = [sys.executable, "-c", "import sys; from vmm.cli import main; sys.exit(main())", "run"]
    pyvmm += ["-m", str(MEMORY_MIB), "--initrd", str(initrd), "--append", "console=hvc0 quiet", "--pvh"]
    return [
        Monitor("pyvmm, vmlinuz", [*pyvmm, vmlinuz]),
        Monitor("pyvmm, vmlinux", [*pyvmm, vmlinux]),
        Monitor("QEMU's Xen emulation, vmlinuz", xen, environment),
        Monitor("QEMU microvm, vmlinux", microvm, environment),
    ]


def _boot(monitor: Monitor) -> Boot:
    start = time.monotonic()
    environment = monitor.environment or dict(os.environ)
    with subprocess.Popen(
        monitor.command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said = _until_mark(process, start)
            seconds = time.monotonic() - start
            if MARK not in said:
                raise SystemExit(f"{monitor.name} did not reach /init: {said[-1000:].decode(errors='replace')}")
            return Boot(seconds, _resident_mib(process.pid), _idle_percent(process.pid))
        finally:
            process.kill()


def _until_mark(process: "subprocess.Popen[bytes]", start: float) -> bytes:
    assert process.stdout is not None
    said, output = b"", process.stdout.fileno()
    while MARK not in said and (left := start + TIMEOUT_S - time.monotonic()) > 0:
        if select.select([output], [], [], left)[0]:
            chunk = os.read(output, 65536)
            if not chunk:
                break
            said += chunk
    return said


def _resident_mib(pid: int) -> float:
    """Of all mappings smaller than half the guest's RAM, which RAM itself is not."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    sizes = re.findall(r"^Size: +(\d+) kB.*?^Rss: +(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
    return sum(int(rss) for size, rss in sizes if int(size) < MEMORY_MIB * 512) / 1024


def _idle_percent(pid: int) -> float:
    def used_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(SETTLE_S)
    before = used_s()
    time.sleep(IDLE_S)
    return 100 * (used_s() - before) / IDLE_S
