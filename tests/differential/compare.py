"""What a guest printed under Xen held against what it printed under pyvmm; what must differ, and why."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tests.differential.programs import Program

DIED = "died"


class Line(NamedTuple):
    """A result: the value, and the changed bytes by range and place."""

    value: str
    changes: dict[tuple[int, int], int]

    @classmethod
    def parse(cls, text: str) -> "Line":
        """As the guest printed it."""
        value, *runs = text.split(" ")
        changes = {}
        for run in runs:
            found = re.fullmatch(r"([0-9a-f]+)\+([0-9a-f]+):((?:[0-9a-f]{2})+)", run)
            if found is None:
                return cls(text, {})
            for index, byte in enumerate(bytes.fromhex(found[3])):
                changes[int(found[1], 16), int(found[2], 16) + index] = byte
        return cls(value, changes)

    def without(self, places: Iterable[tuple[int, int]]) -> "Line":
        """Less some bytes."""
        gone = set(places)
        return Line(self.value, {place: byte for place, byte in self.changes.items() if place not in gone})


class Difference(NamedTuple):
    """Of one program: the first line that differs without a reason."""

    program: int
    line: int
    name: str
    xen: str
    ours: str


class Reason(NamedTuple):
    """Why results of some calls may differ: `same` says whether these do as they may."""

    calls: str
    why: str
    same: Callable[[Line, Line], bool]


def _but(*places: tuple[int, int]) -> Callable[[Line, Line], bool]:
    return lambda xen, ours: xen.without(places) == ours.without(places)


def _places(number: int, start: int, length: int, every: int = 0, count: int = 1) -> list[tuple[int, int]]:
    return [(number, start + every * index + byte) for index in range(count) for byte in range(length)]


def _value(xen: Line, ours: Line) -> bool:
    return xen.changes == ours.changes and not xen.value.startswith("-") and not ours.value.startswith("-")


def _texts(xen: Line, ours: Line) -> bool:
    return xen.value == ours.value


def _numbers(xen: Line, ours: Line) -> bool:
    return xen.value == ours.value == "0" and bool(xen.changes) and bool(ours.changes)


def _changed(xen: Line, ours: Line) -> bool:
    return xen.value == ours.value


def _refused(xen: Line, ours: Line) -> bool:
    return xen == Line("-1", {})


REASONS = [
    Reason(r"own domid", "a guest's id is the next one free", lambda xen, ours: True),
    Reason(r"event_channel_op\.status\(", "a guest's id is the next one free", _but(*_places(0, 16, 2))),
    Reason(r"xen_version\.(compile_info|extraversion|changeset)\(", "pyvmm has an identity of its own", _texts),
    Reason(r"xen_version\.guest_handle\(", "each guest has a UUID of its own", _texts),
    Reason(r"console_io\(0", "pyvmm shows what a guest writes, as a debug build of Xen does", _refused),
    Reason(r"hvm_op\.get_time", "time", _numbers),
    Reason(r"memory_op\.exchange", "pages have no machine frames to be exchanged", lambda xen, ours: ours.value == "-5f"),
    Reason(r"hypercall_41", "there are no device models", lambda xen, ours: ours.value == "-26"),
    Reason(
        r"(grant|shared_info)", "a page that was given away reads as 0, not as all ones",
        lambda xen, ours: set(xen.value) == {"f"},
    ),
    Reason(r"hypercall_49", "Xen's own continuation of a domctl", lambda xen, ours: ours.value == "-26"),
    Reason(r"grant_table_op\.swap_grant_ref\(.*[ab]=0x[01],", "dom0 has these pages mapped", _changed),
    Reason(r"vcpu_op\.register_time", "not every KVM can keep a second copy", lambda xen, ours: ours.value == "-26"),
    Reason(r"vcpu_op\.get_runstate_info", "time", _but(*_places(0, 8, 40), *_places(1, 8, 40))),
    Reason(r"cpuid\(0x40000003", "the host's clock", lambda xen, ours: True),
    Reason(r"cpuid\(0x40000004", "a guest's id is the next one free", lambda xen, ours: True),
    Reason(r"grant_table_op\.map_grant_ref", "addresses of the machine's memory", _but(*_places(0, 24, 8, 32, 3))),
    Reason(r"grant_table_op\.setup_table", "addresses of the machine's memory", _but(*_places(1, 0, 64))),
    Reason(r"memory_op\.machphys_mfn_list", "there is no such table here", lambda xen, ours: ours.value == "0"),
    Reason(r"memory_op\.maximum_ram_page", "the machine's memory", _value),
    Reason(
        r"shared_info\.evtchn_pending", "xenstored and xenconsoled signal when they like",
        lambda xen, ours: int(xen.value[:2], 16) & ~6 == int(ours.value[:2], 16) & ~6 and xen.value[2:] == ours.value[2:],
    ),
]  # fmt: skip


def reason(name: str, xen: str, ours: str) -> str | None:
    """Why these two results of a call differ; None where nothing is known that allows it."""
    theirs, mine = Line.parse(xen), Line.parse(ours)
    for entry in REASONS:
        if re.match(entry.calls, name) and entry.same(theirs, mine):
            return entry.why
    return None


def differences(
    programs: Iterable[Program], xen: dict[int, list[str]], ours: dict[int, list[str]], *, every: bool = False
) -> Iterator[Difference]:
    """The first unexplained difference of each program, or every one."""
    for program in programs:
        theirs, mine = xen.get(program.number, [DIED]), ours.get(program.number, [DIED])
        if DIED in theirs and DIED in mine:  # how much a guest that dies had yet to print is chance
            both = min(len(theirs), len(mine)) - 1
            theirs, mine = theirs[:both], mine[:both]
        for index, name in enumerate(program.names):
            if index >= max(len(theirs), len(mine)):
                break
            one = theirs[index] if index < len(theirs) else DIED
            other = mine[index] if index < len(mine) else DIED
            if one != other and reason(name, one, other) is None:
                yield Difference(program.number, index, name, one, other)
                if not every:
                    break
            if DIED in (one, other):
                break
