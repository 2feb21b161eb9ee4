"""Programs of hypercalls for the guest that carries them out (`guest.S`), as the bytes that it reads."""

import struct
from collections.abc import Iterable
from typing import NamedTuple, Self

ARENA = 0x0C00_0000
"""Guest-physical, and linear: where arguments lie."""
SHARED_INFO = ARENA + 0x1_0000
GRANT_TABLE = ARENA + 0x1_1000
OWN_DOMID = ARENA + 0x1_2000
"""The guest's own id, 2 bytes, as its set-up finds it out."""
RUNSTATE = ARENA + 0x1_3000
"""What Xen writes to as it likes; nobody looks."""
PLAY_GFN, PLAY_PAGES = 0xD000, 16
"""Pages that programs may give away."""
FRAMES_GFN, FRAMES_PAGES = PLAY_GFN + PLAY_PAGES, 8
"""Where they may show other pages: a frame of the grant table that is given away is lost on Xen for good."""
MEMORY_MIB = 256
EDGE = ARENA + 0x2_0000 - 4
"""The last bytes of a page, behind which there is nothing."""
HOLE = 0x3000_0000
"""Neither memory nor a device."""


class Range(NamedTuple):
    """Bytes of memory that a call may change."""

    address: int
    length: int


class Step(NamedTuple):
    """One step: its bytes, and its name where it prints a line."""

    code: bytes
    name: str = ""

    @classmethod
    def write(cls, address: int, data: bytes) -> Self:
        """To memory."""
        return cls(struct.pack("<cIH", b"W", address, len(data)) + data)

    @classmethod
    def copy(cls, to: int, source: int, length: int) -> Self:
        """Within memory."""
        return cls(struct.pack("<cIIH", b"C", to, source, length))

    @classmethod
    def show(cls, name: str, address: int, length: int) -> Self:
        """Print memory."""
        return cls(struct.pack("<cIH", b"S", address, length), name)

    @classmethod
    def cpuid(cls, leaf: int, subleaf: int) -> Self:
        """Print the registers of a leaf."""
        return cls(struct.pack("<cII", b"I", leaf, subleaf), f"cpuid({leaf:#x}, {subleaf})")

    @classmethod
    def rdmsr(cls, index: int) -> Self:
        """Print an MSR."""
        return cls(struct.pack("<cI", b"M", index), f"rdmsr({index:#x})")

    @classmethod
    def wrmsr(cls, index: int, value: int) -> Self:
        """Write an MSR."""
        return cls(struct.pack("<cIQ", b"N", index, value), f"wrmsr({index:#x}, {value:#x})")

    @classmethod
    def call(cls, name: str, number: int, arguments: Iterable[int], watched: Iterable[Range] = ()) -> Self:
        """A hypercall with up to five arguments; what it changes in `watched` is printed."""
        five = [*arguments, 0, 0, 0, 0, 0][:5]
        ranges = b"".join(struct.pack("<cIH", b"R", *one) for one in watched)
        return cls(ranges + struct.pack("<cB5Q", b"H", number, *(value & (1 << 64) - 1 for value in five)), name)

    @classmethod
    def quiet_call(cls, number: int, arguments: Iterable[int]) -> Self:
        """A hypercall of which nothing is printed."""
        five = [*arguments, 0, 0, 0, 0, 0][:5]
        return cls(struct.pack("<cB5Q", b"Q", number, *five))


class Program(NamedTuple):
    """Steps under a number."""

    number: int
    steps: tuple[Step, ...]

    @property
    def names(self) -> list[str]:
        """Of the lines that it prints."""
        return [step.name for step in self.steps if step.name]


def encode(programs: Iterable[Program]) -> bytes:
    """The guest's module."""
    parts = []
    for program in programs:
        parts.append(struct.pack("<cI", b"P", program.number))
        parts += [step.code for step in program.steps]
    return b"".join(parts) + b"E"


def decode(console: str) -> dict[int, list[str]]:
    """The lines that each program printed, by its number."""
    found: dict[int, list[str]] = {}
    lines: list[str] = []
    for line in console.splitlines():
        if line.startswith("P") and line[1:]:
            lines = found.setdefault(int(line[1:], 16), [])
        elif line:
            lines.append(line)
    return found
