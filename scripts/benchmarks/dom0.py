"""What a dom0 pays to see another domain's memory, beside a bare hypercall; its boot beside a domU's; a vchan.

Boots and the vchan need VT-x or AMD-V: `ci/nested --kernel 6.12 -- scripts/bench dom0`.
"""

import re
import subprocess
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.guests import assemble, printed_us
from scripts.benchmarks.monitors import ROOT, pyvmm
from scripts.benchmarks.table import Row
from tests.boot.vchan import Kernels, carry
from tests.guests import SHARED_PAGES, Transcript, share_pages
from vmm.boot.image import load_image
from vmm.boot.initramfs import busybox_initramfs
from vmm.config.domain import DomainConfig
from vmm.config.features import COMBINATIONS
from vmm.host.cpuinfo import cpu_flags
from vmm.kvm import System
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.transport import Transport

TIMEOUT_S = 300
MARK = "/init is running"
VCHAN_BYTES, VCHAN_ROUNDS = 8 << 20, 500
CALLS = (
    "xen_version",
    "map 1 grant", "unmap 1 grant",
    "map 32 grants", "unmap 32 grants",
    "map 512 grants", "unmap 512 grants",
    f"map {SHARED_PAGES} foreign pages", "remove one",
)  # fmt: skip
"""What the micro-guest `maps` prints the times of."""


def measure(runs: int) -> list[Row]:
    """The calls on any KVM, the rest where Linux boots."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = assemble("maps", folder)
        samples = [_calls(image) for _ in range(runs)]
        rows = [Row(what, [sample[index] for sample in samples], "us") for index, what in enumerate(CALLS)]
        for what in (2, 4, 6):
            pages = int(CALLS[what - 1].split()[1])
            each = [(sample[what - 1] + sample[what]) / pages / sample[0] for sample in samples]
            rows.append(Row(f"map and unmap, {pages} at once: a page, to xen_version", each, "times"))
        each = [sample[7] / SHARED_PAGES / sample[0] for sample in samples]
        rows.append(Row("a foreign page, to xen_version", each, "times"))
        if {"vmx", "svm"} & cpu_flags():
            rows += _boots(folder, runs) + _vchan(folder)
    return rows


def _calls(image: Path) -> list[float]:
    transcript, khz = run_maps(image)
    return printed_us(transcript, khz)


def run_maps(image: Path) -> tuple[Transcript, int]:
    """The micro-guest `maps` as a dom0 beside a domain that grants, to its end: what it said, and its TSC's kHz."""
    system = System()
    hypervisor, transcript = Hypervisor(system), Transcript()
    config = DomainConfig(image, memory_bytes=64 << 20, transport=Transport.PAGE)
    features = COMBINATIONS["pvh-dom0"]
    try:
        dom0, guest = (
            build_domain(hypervisor, each.checked(), load_image(image), [], transcript, shareable=True)
            for each in (config._replace(features=features, own_xenstore=True), config)
        )
        share_pages(guest)
        khz = dom0.vcpus[0].kvm.tsc_khz()
        dom0.unpause()
        dom0.wait(TIMEOUT_S)
        dom0.stop()
        return transcript, khz
    finally:
        hypervisor.close()
        system.close()


def _found(*options: str) -> Path:
    done = subprocess.run([ROOT / "scripts/kernel", *options], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _boots(folder: Path, runs: int) -> list[Row]:
    """Exec to /init of one kernel, as dom0 and as domU."""
    initrd = folder / "initrd"
    initrd.write_bytes(busybox_initramfs(f"echo '{MARK}'\nsleep 1000\n"))
    image = _found("--vmlinux", "6.1-generic")
    times: dict[str, list[float]] = {"domU": [], "dom0": []}
    for _ in range(runs):
        times["domU"].append(_boot(initrd, image))
        times["dom0"].append(_boot(initrd, image, "--dom0"))
    rows = [Row(f"Debian 6.1 generic as {kind}: exec to /init", samples, "s") for kind, samples in times.items()]
    ratios = [ours / theirs for ours, theirs in zip(times["dom0"], times["domU"], strict=True)]
    return [*rows, Row("dom0 to domU", ratios, "times")]


def _boot(initrd: Path, image: Path, *options: str) -> float:
    monitor = pyvmm(initrd, *options, image=image)
    start = time.monotonic()
    with subprocess.Popen(
        monitor.command, env=monitor.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            if not any(MARK in line for line in process.stdout):
                raise SystemExit(f"the kernel did not reach /init as {'dom0' if options else 'domU'}")
            return time.monotonic() - start
        finally:
            process.kill()


def _vchan(folder: Path) -> list[Row]:
    root = subprocess.run([ROOT / "scripts/rootfs", "dom0"], capture_output=True, text=True, check=True).stdout.strip()
    disk = folder / "disk"
    subprocess.run(["cp", "--sparse=always", root, disk], check=True)
    names = (("--vmlinux", "6.1-generic"), ("--modules", "6.1-generic"), ("--vmlinux", "6.1"), ("--modules", "6.1"))
    kernels = Kernels(*(_found(*words) for words in names))
    done = carry(kernels, disk, folder, bytes_sent=VCHAN_BYTES, rounds=VCHAN_ROUNDS, timeout_s=TIMEOUT_S)
    seconds = re.search(r"in ([\d.]+) s", done.dom0)
    latency = re.search(r"([\d.]+) us each", done.dom0)
    if done.status or seconds is None or latency is None:
        raise SystemExit(f"the vchan did not come to its end: {done.errors}{done.dom0[-2000:]}")
    return [
        Row("vchan, guest to dom0", [VCHAN_BYTES / float(seconds[1]) / 1e6], "MB/s"),
        Row("vchan, a byte there and back", [float(latency[1])], "us"),
    ]
