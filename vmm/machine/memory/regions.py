"""Regions of guest memory that know their backing, and the bytes in them that the hypervisor keeps using."""

from bisect import bisect_right
from collections.abc import Sequence

from vmm.errors import PyvmmError
from vmm.kvm import HostMemory
from vmm.kvm.hostmem import exchange_32, fetch_and_64, fetch_or_64, mark_entries, unmark_entries
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.values import Gpa

NOT_THE_GUESTS = Gpa(-1)
"""Where bytes are that the guest has no address of."""


class MemoryFault(PyvmmError):
    """No guest memory at an address."""


class Region:
    """A stretch of guest memory: where it is, its host mapping, and its slot in KVM."""

    __slots__ = ("absent", "end", "host", "slot", "start")

    def __init__(self, start: int, host: HostMemory, slot: int) -> None:
        self.start = start
        self.end = start + host.size_bytes
        self.host = host
        self.slot = slot
        self.absent: bytearray | None = None
        """One byte a page: 1 where there is none for the guest.  Made when that is so for the first."""

    def has(self, gfn: int) -> bool:
        """Whether there is a page for the guest."""
        return self.absent is None or not self.absent[gfn - self.start // PAGE_BYTES]

    def mark(self, gfn: int, *, there: bool) -> None:
        """Say so, or that there is none."""
        if self.absent is None:
            if there:
                return
            self.absent = bytearray((self.end - self.start) // PAGE_BYTES)
        self.absent[gfn - self.start // PAGE_BYTES] = not there


class SharedBytes:
    """A piece of guest memory that hypervisor and guest both change; stays valid as long as its domain."""

    __slots__ = ("_host", "_offset", "address", "gpa", "size_bytes")

    def __init__(self, host: HostMemory, offset_bytes: int, size_bytes: int, gpa: Gpa = NOT_THE_GUESTS) -> None:
        self.gpa = gpa
        self._host = host
        self._offset = offset_bytes
        self.size_bytes = size_bytes
        self.address = host.address + offset_bytes
        """Where it is in this process: for as long as the domain lives, whatever the guest puts there."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """A copy of some bytes."""
        start = self._offset + offset_bytes
        return bytes(self._host.view[start : start + size_bytes])

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Change some bytes."""
        start = self._offset + offset_bytes
        self._host.view[start : start + len(data)] = data

    def words(self) -> memoryview:
        """All of it as 32-bit words, each read and written whole."""
        return self._host.view[self._offset : self._offset + self.size_bytes].cast("I")

    def fetch_or_64(self, offset_bytes: int, bits: int) -> int:
        """Set bits of a 64-bit word by one locked instruction: the word before."""
        return fetch_or_64(self.address + offset_bytes, bits)

    def fetch_and_64(self, offset_bytes: int, bits: int) -> int:
        """Keep these bits of a 64-bit word alone, likewise."""
        return fetch_and_64(self.address + offset_bytes, bits)

    def exchange_32(self, offset_bytes: int, expected: int, wanted: int) -> int:
        """Replace a 32-bit word if it is what is expected, likewise: the word before."""
        return exchange_32(self.address + offset_bytes, expected, wanted)

    def mark_entries(self, numbers: Sequence[int], usual: int, ignored: int, bits: int) -> list[int]:
        """Mark many grant entries at once (`xenabi.interfaces.SharedBytes`)."""
        return mark_entries(self.address, numbers, usual, ignored, bits)

    def unmark_entries(self, numbers: Sequence[int], bits: int) -> None:
        """Clear bits in the first words of such entries."""
        unmark_entries(self.address, numbers, bits)


class RegionTable:
    """Regions by address.  Writers hold the memory's lock; readers see the table as it was or as it is, never between."""

    def __init__(self) -> None:
        self._table: tuple[list[int], list[Region]] = [], []

    @property
    def all(self) -> list[Region]:
        """All of them, by address."""
        return self._table[1]

    @property
    def next_slot(self) -> int:
        """A slot of KVM's that none of them has."""
        return len(self._table[1])

    def add(self, region: Region) -> None:
        """One more, which overlaps none of the others."""
        regions = sorted([*self._table[1], region], key=lambda known: known.start)
        self._table = [known.start for known in regions], regions

    def find(self, gpa: int) -> Region | None:
        """The region that holds an address."""
        starts, regions = self._table
        index = bisect_right(starts, gpa) - 1
        if index >= 0:
            region = regions[index]
            if gpa < region.end:
                return region
        return None

    def take_all(self) -> list[Region]:
        """All of them, which are in the table no more."""
        (_, regions), self._table = self._table, ([], [])
        return regions
