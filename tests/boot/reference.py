"""What real Xen showed the same kernel, point by point, and what a guest of pyvmm shows: `reference*.txt` and a boot.

`reference.txt` holds the facts of a Debian 6.1 cloud kernel in a PVH domU of Xen 4.17.7 (1 vCPU, 256 MiB, without the
lines of its disk and network card), in the normal form of `normal`.  `reference-dom0.txt` has those of the generic kernel
in a PVH dom0 (1 vCPU, 1536 MiB) that say nothing of the machine below Xen: its memory map, PCI devices and ACPI tables.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
DIFFERENCES = HERE.parents[1] / "docs/differences.md"

FACTS = r"""
echo "== hypervisor"
cd /sys/hypervisor; for file in $(find . -type f | sort); do echo "/sys/hypervisor${file#.}: $(cat $file 2>&1)"; done
echo "== interrupts"; cat /proc/interrupts
echo "== iomem"; cat /proc/iomem
echo "== ioports"; cat /proc/ioports
echo "== clock"; cd /sys/devices/system
cat clocksource/clocksource0/current_clocksource clocksource/clocksource0/available_clocksource
cat clockevents/clockevent0/current_device
echo "== acpi"; ls -1 /sys/firmware/acpi/tables
[ -c /dev/xen/privcmd ] && { echo "== xen"; ls -1 /dev/xen; cat /proc/xen/capabilities; }
echo "== end"
poweroff -f
"""
"""A script for the initramfs: the same facts, in sections, after the kernel's own log."""

_LOG_LINES = re.compile(
    r"xen|hypervisor|acpi|e820|clocksource|pvh|hvm|pci|apic|dmi |i8042|hvc0|pnp|elcr|fast tsc|cpus, |smp: |available for",
    re.IGNORECASE,
)
_OTHER_LINES = re.compile(r"Linux version|[Cc]ommand line|Still not present|Core revision|vgaarb|acpiphp")
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ")
_INTERRUPT = re.compile(r"^ *(\w+): +\d+ +(.*)$")


_SLOW_HOST = "hrtimer: interrupt took"


def normal(text: str) -> list[str]:
    """The lines that tell of the platform, with N for the numbers that belong to the machine; sections keep their names."""
    section = "log"
    found = []
    for line in map(str.strip, _STAMP.sub("", text.replace("\r", ""), count=0).splitlines()):
        if _SLOW_HOST in line:  # printed into whatever is printed then
            continue
        if line.startswith("== "):
            section = line[3:]
        else:
            found += [f"{section}: {kept}" for kept in _kept(section, line)]
    return list(dict.fromkeys(found))


def _kept(section: str, line: str) -> Iterator[str]:
    if section == "log":
        line = _STAMP.sub("", line)
        if _LOG_LINES.search(line) and not _OTHER_LINES.search(line):
            yield (
                line
                if "[mem " in line and "table" not in line
                else re.sub(r"0x[0-9a-fA-F]+|\b[0-9A-F]{6}\b|\d+", "N", line)
            )
    elif section == "interrupts":
        if match := _INTERRUPT.match(line):
            yield re.sub(r" +", " ", f"{match[2]}" if match[1].isdigit() else f"{match[1]}: {match[2]}")
    elif section == "hypervisor":
        yield re.sub(r"((uuid|compilation/\w+):).*", r"\1 N", line)
    elif line and section != "end":
        yield re.sub(r"^\w+-\w+( : Kernel)", r"N\1", line)


_MACHINE = re.compile(
    r"log: (BIOS-e820|e820: |clipped|\[mem |pci[ _]|acpi PNP|DMI|ACPI: (PCI: Interrupt link|\S{2,4} +N N|INT_SRC_OVR))"
    r"|(iomem|ioports|acpi|clock): "
)


def of_dom0(lines: Iterable[str]) -> set[str]:
    """Those that do not tell of the machine that dom0 is on."""
    return {line for line in lines if not _MACHINE.match(line)}


def reference(name: str = "reference.txt") -> set[str]:
    """What Xen showed."""
    return set((HERE / name).read_text().splitlines())


def listed() -> dict[str, set[str]]:
    """The lines that docs/differences.md lists, by who alone has them: `Xen`, `pyvmm`, or that without KVM_XEN."""
    found: dict[str, set[str]] = {
        who: set() for who in ("Xen", "pyvmm", "pyvmm without KVM_XEN", "Xen's dom0", "pyvmm's dom0")
    }
    for who, line in re.findall(r"^\| (Xen.*?|pyvmm.*?) \| `([^/].*?)` \|", DIFFERENCES.read_text(), re.MULTILINE):
        found[who].add(line)
    return found
