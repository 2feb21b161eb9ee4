"""One pair of byte rings that carry 9P messages.  Source: xen/include/public/io/9pfs.h.

Each index is read once; one that claims more than the ring holds ends the share.
"""

from vmm.devices.ring.granted import GrantedPages
from vmm.xenabi.byte_ring import RingBroken
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.values import XenError

MAX_ORDER = 9
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = 0, 1, 16, 17
_ORDER_AT, _REFS_AT = 128, 132
_MASK = 0xFFFF_FFFF


class ShareRing:
    """The back end's side: `requests` come out of it, `room` is where answers go.  Owned by one thread."""

    def __init__(self, pages: GrantedPages, ref: int) -> None:
        """XenError for what was not granted, RingBroken for a size that cannot be; nothing stays mapped then."""
        self._pages = pages
        self._refs = [ref]
        self._shared, page = pages.map_shared(ref)
        self._indices = page[:128].cast("I")
        order = int.from_bytes(bytes(page[_ORDER_AT:_REFS_AT]), "little")
        try:
            if not 1 <= order <= MAX_ORDER:
                raise RingBroken(f"a ring of order {order}, not 1 to {MAX_ORDER}")
            data = []
            for number in range(1 << order):
                at = _REFS_AT + 4 * number
                wanted = int.from_bytes(bytes(page[at : at + 4]), "little")
                data.append(pages.map(wanted, write=True))
                self._refs.append(wanted)
        except (XenError, RingBroken):
            self.close()
            raise
        half = len(data) // 2
        self._in, self._out = data[:half], data[half:]
        self.size_bytes = half * PAGE_BYTES
        """Of either direction."""
        self._consumed = self._indices[_OUT_CONS]
        self._filled = self._indices[_IN_PROD]

    def requests(self, at_most: int) -> list[memoryview]:
        """What the guest has sent, in pieces, until `consume`; RingBroken."""
        waiting = (self._indices[_OUT_PROD] - self._consumed) & _MASK
        if waiting > self.size_bytes:
            raise RingBroken(f"{waiting} bytes in a ring of {self.size_bytes}")
        return self._slices(self._out, self._consumed, min(waiting, at_most))

    def consume(self, size_bytes: int) -> bool:
        """The guest may use that space again; True where there was little left, so that it may wait for it."""
        was_full = (self._indices[_OUT_PROD] - self._consumed) & _MASK > self.size_bytes // 2
        self._consumed = (self._consumed + size_bytes) & _MASK
        self._indices[_OUT_CONS] = self._consumed
        return was_full

    def room(self, at_most: int) -> list[memoryview]:
        """Where answers may be put, in pieces, until `fill`; RingBroken."""
        used = (self._filled - self._indices[_IN_CONS]) & _MASK
        if used > self.size_bytes:
            raise RingBroken(f"{used} bytes in a ring of {self.size_bytes}")
        return self._slices(self._in, self._filled, min(self.size_bytes - used, at_most))

    def fill(self, size_bytes: int) -> None:
        """So much has been put there."""
        self._filled = (self._filled + size_bytes) & _MASK

    def publish(self) -> None:
        """The guest may read what has been put there: whole messages, since Linux looks for no less."""
        self._indices[_IN_PROD] = self._filled

    def fence(self) -> None:
        """No later load passes the stores before: to be called before looking again for what came meanwhile."""
        self._shared.fetch_or_64(120, 0)

    def _slices(self, pages: list[memoryview], index: int, size: int) -> list[memoryview]:
        found, at = [], index & (self.size_bytes - 1)
        while size:
            page, offset = divmod(at, PAGE_BYTES)
            part = min(PAGE_BYTES - offset, size)
            found.append(pages[page][offset : offset + part])
            size -= part
            at = (at + part) & (self.size_bytes - 1)
        return found

    def close(self) -> None:
        """Unmap everything."""
        while self._refs:
            self._pages.unmap(self._refs.pop(), write=True)
