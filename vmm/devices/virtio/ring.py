"""The device's side of a split virtqueue.

Everything about its indices and chains lives here: each is read once, and what cannot be ends the queue.
Source: Virtual I/O Device Specification 1.1, 2.6.
"""

import struct
from typing import NamedTuple, Protocol

from vmm.xenabi.interfaces import SharedBytes
from vmm.xenabi.values import Gpa

MAX_ENTRIES = 256
_DESCRIPTOR = struct.Struct("<QIHH")
_U16 = struct.Struct("<H")
_USED = struct.Struct("<II")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1


class QueueBroken(Exception):
    """The driver has put something into the queue that cannot be; the text says what."""


class Memory(Protocol):
    """Guest memory."""

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """Writable bytes; MemoryFault where they are not all there."""
        ...

    def shared(self, gpa: Gpa, size_bytes: int) -> SharedBytes:
        """A piece with atomic access."""
        ...


class Place(NamedTuple):
    """Where the driver has put a queue: entries, descriptor table, available ring, used ring."""

    entries: int
    descriptors: int
    available: int
    used: int


class Chain(NamedTuple):
    """One request: what the device may read, what it is to fill."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class VirtQueue:
    """One queue.  Owned by one thread; the guest writes to the same memory all the time."""

    def __init__(self, memory: Memory, place: Place, fault: type[Exception], *, event_index: bool) -> None:
        """`fault` is what `memory` raises; QueueBroken where the queue is not in memory."""
        self._memory = memory
        self._fault = fault
        self._entries = entries = place.entries
        self._event_index = event_index
        try:
            self._descriptors = memory.view(place.descriptors, entries * _DESCRIPTOR.size)
            self._available = memory.view(place.available, 6 + 2 * entries)
            self._used = memory.view(place.used, 6 + 8 * entries)
            self._fence = memory.shared(Gpa(place.descriptors), _DESCRIPTOR.size)
        except Exception as error:
            if isinstance(error, fault):
                raise QueueBroken(f"a queue where the guest has no memory: {error}") from None
            raise
        self._taken = self._returned = self._shown = 0

    def record(self) -> tuple[int, int, int]:
        """Where it is, as data: the indices up to which it has taken, given back, and shown."""
        return self._taken, self._returned, self._shown

    def restore(self, record: tuple[int, int, int]) -> None:
        """Go on where another was; before it is served."""
        self._taken, self._returned, self._shown = record

    def take(self) -> list[Chain]:
        """All requests that wait; QueueBroken."""
        (index,) = _U16.unpack_from(self._available, 2)
        waiting = (index - self._taken) & 0xFFFF
        if waiting > self._entries:
            raise QueueBroken(f"an index {waiting} ahead, in a queue of {self._entries}")
        found = []
        for number in range(waiting):
            (head,) = _U16.unpack_from(self._available, 4 + 2 * ((self._taken + number) % self._entries))
            found.append(self._chain(head))
        self._taken = (self._taken + waiting) & 0xFFFF
        return found

    def _chain(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        table, entries, index = self._descriptors, self._entries, head
        for _ in range(self._entries):
            if index >= entries:
                raise QueueBroken(f"descriptor {index} of {entries}")
            address, size, flags, following = _DESCRIPTOR.unpack_from(table, index * _DESCRIPTOR.size)
            if flags & _INDIRECT:
                entries = size // _DESCRIPTOR.size
                if table is not self._descriptors or flags & (_NEXT | _WRITE) or not 0 < entries <= MAX_ENTRIES:
                    raise QueueBroken("an indirect descriptor within another, or without a table")
                table, index = memoryview(bytes(self._view(address, entries * _DESCRIPTOR.size))), 0
                continue
            if flags & _WRITE:
                chain.writable.append(self._view(address, size))
            elif chain.writable:
                raise QueueBroken("a descriptor to read behind one to write")
            else:
                chain.readable.append(self._view(address, size))
            if not flags & _NEXT:
                return chain
            index = following
        raise QueueBroken("a chain without end")

    def _view(self, address: int, size: int) -> memoryview:
        try:
            return self._memory.view(address, size)
        except Exception as error:
            if isinstance(error, self._fault):
                raise QueueBroken(str(error)) from None
            raise

    def give_back(self, chain: Chain, written_bytes: int) -> None:
        """The request is done; the driver sees it after `push`."""
        _USED.pack_into(self._used, 4 + 8 * (self._returned % self._entries), chain.head, written_bytes)
        self._returned = (self._returned + 1) & 0xFFFF

    def push(self) -> bool:
        """Show the driver what has been given back; True where it wants to be told."""
        before, after = self._shown, self._returned
        if before == after:
            return False
        _U16.pack_into(self._used, 2, after)
        self._shown = after
        self._fence.fetch_or_64(0, 0)
        if not self._event_index:
            return not self._available[0] & _NO_INTERRUPT
        (wanted,) = _U16.unpack_from(self._available, 4 + 2 * self._entries)
        return bool((after - wanted - 1) & 0xFFFF < (after - before) & 0xFFFF)

    def rearm(self) -> bool:
        """Ask to be told of the next request; True where it is there already."""
        if self._event_index:
            _U16.pack_into(self._used, 4 + 8 * self._entries, self._taken)
            self._fence.fetch_or_64(0, 0)
        (index,) = _U16.unpack_from(self._available, 2)
        return bool(index != self._taken)


def split(views: list[memoryview], size: int) -> tuple[bytes, list[memoryview]]:
    """The first bytes of some views, copied, and the views of the rest."""
    head, rest = b"", []
    for view in views:
        part = min(size - len(head), len(view))
        head += bytes(view[:part])
        if part < len(view):
            rest.append(view[part:])
    return head, rest
