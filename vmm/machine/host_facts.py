"""What a dom0's tools may know of the host: its CPUs and memory, as Linux tells them."""

import os
import struct
from pathlib import Path

from vmm.kvm import CpuidEntry
from vmm.xenabi.values import CpuPlace, HostFacts

_CPUS = Path("/sys/devices/system/cpu")
# Xen's feature words: leaf, sub-leaf, and which of EAX, EBX, ECX, EDX.
_WORDS = (
    (1, None, "edx"), (1, None, "ecx"), (0x8000_0001, None, "edx"), (0x8000_0001, None, "ecx"), (0xD, 1, "eax"),
    (7, 0, "ebx"), (7, 0, "ecx"), (0x8000_0007, None, "edx"),
)  # fmt: skip


def gather(cpuid: list[CpuidEntry], cpu_khz: int) -> HostFacts:
    """As things are now; `cpuid` is what KVM supports."""
    places = _places()
    sockets = len({place.socket for place in places})
    cores = len(set(places))
    signature = _leaf(cpuid, 1, None)
    family, model = signature.eax >> 8 & 0xF, signature.eax >> 4 & 0xF
    if family == 0xF:
        family += signature.eax >> 20 & 0xFF
    if family >= 6:
        model |= signature.eax >> 12 & 0xF0
    maker = _leaf(cpuid, 0, None)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return HostFacts(
        cpus=tuple(places),
        threads_per_core=max(len(places) // cores, 1),
        cores_per_socket=max(cores // sockets, 1),
        cpu_khz=cpu_khz,
        total_pages=os.sysconf("SC_PHYS_PAGES"),
        free_pages=_available_bytes() // page_bytes,
        capabilities=tuple(int(getattr(_leaf(cpuid, leaf, subleaf), word)) for leaf, subleaf, word in _WORDS),
        idle_ns=tuple(_idle_ns()),
        vendor=struct.pack("<III", maker.ebx, maker.edx, maker.ecx),
        family=family,
        model=model,
        stepping=signature.eax & 0xF,
    )


def _leaf(cpuid: list[CpuidEntry], function: int, subleaf: int | None) -> CpuidEntry:
    for row in cpuid:
        if row.function == function and row.subleaf in (subleaf, None):
            return row
    return CpuidEntry(function, subleaf, 0, 0, 0, 0)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _online() -> list[int]:
    found: list[int] = []
    try:
        text = (_CPUS / "online").read_text().strip()
    except OSError:
        return list(range(os.cpu_count() or 1))
    for stretch in text.split(","):
        first, _, last = stretch.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _places() -> list[CpuPlace]:
    folders = [_CPUS / f"cpu{cpu}" / "topology" for cpu in _online()]
    return [CpuPlace(_number(folder / "core_id"), _number(folder / "physical_package_id")) for folder in folders]


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _idle_ns() -> list[int]:
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    found = []
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name != "cpu":
            found.append((int(times[3]) + int(times[4])) * tick_ns)
    return found
