"""One direction of a ring of bytes in a page that is shared with a guest: the consoles' and xenstore's."""

import struct
from typing import Protocol

_U32 = struct.Struct("<I")


class Page(Protocol):
    """The ring's page."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """A copy of some bytes."""
        ...

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Change some bytes."""
        ...


class RingBroken(Exception):
    """The guest's indices say that there is more in the ring than it holds."""


class ByteRing:
    """Data and two free-running 32-bit indices at these offsets.  Each index is read once."""

    def __init__(self, page: Page, data: int, size_bytes: int, consumer: int, producer: int) -> None:
        self._page = page
        self._data = data
        self._size = size_bytes
        self._consumer = consumer
        self._producer = producer

    def _used(self) -> tuple[int, int, int]:
        consumed, produced = (int(_U32.unpack(self._page.read(at, 4))[0]) for at in (self._consumer, self._producer))
        used = (produced - consumed) & 0xFFFF_FFFF
        if used > self._size:
            raise RingBroken
        return consumed, produced, used

    def take(self) -> bytes:
        """All that the other end has put there; RingBroken."""
        consumed, produced, waiting = self._used()
        if not waiting:
            return b""
        start = consumed % self._size
        first = min(waiting, self._size - start)
        data = self._page.read(self._data + start, first) + self._page.read(self._data, waiting - first)
        self._page.write(self._consumer, _U32.pack(produced))
        return data

    def put(self, data: bytes) -> int:
        """Hand bytes to the other end: how many there was room for; RingBroken."""
        _, produced, used = self._used()
        accepted = data[: self._size - used]
        start = produced % self._size
        first = accepted[: self._size - start]
        self._page.write(self._data + start, first)
        self._page.write(self._data, accepted[len(first) :])
        self._page.write(self._producer, _U32.pack((produced + len(accepted)) & 0xFFFF_FFFF))
        return len(accepted)
