"""The back end's side of a ring of requests and responses in pages that a guest has granted.

Everything about its indices lives here: each is read once, and one that claims more than the ring holds ends the ring.
Source: xen/include/public/io/ring.h.
"""

from collections.abc import Sequence

from vmm.xenabi.byte_ring import RingBroken
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.interfaces import SharedBytes

HEADER_BYTES = 64
_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = range(4)
_MASK = 0xFFFF_FFFF


class SharedRing:
    """One ring.  Owned by one thread; the guest writes to the same memory all the time.

    `header` and `pages[0]` are the same page, once with atomic access.
    """

    def __init__(self, header: SharedBytes, pages: Sequence[memoryview], entry_bytes: int) -> None:
        room = (len(pages) * PAGE_BYTES - HEADER_BYTES) // entry_bytes
        self.entries = 1 << (room.bit_length() - 1)
        self._header = header
        self._pages = pages
        self._entry_bytes = entry_bytes
        self._indices = pages[0][:16].cast("I")
        # As Linux's back ends do: a front end that has used this ring before goes on where it was.
        self._consumed = self._responded = self._pushed = self._indices[_RSP_PROD]

    def take(self) -> list[bytes]:
        """Copies of all requests that wait; RingBroken."""
        size, taken = self._entry_bytes, self.take_bytes()
        return [taken[start : start + size] for start in range(0, len(taken), size)]

    def take_bytes(self) -> bytes:
        """Copies of all requests that wait, one behind the other; RingBroken."""
        waiting = self.peek()
        first = self._consumed & (self.entries - 1)
        to_end = min(waiting, self.entries - first)
        self._consumed = (self._consumed + waiting) & _MASK
        taken = self._read(first, to_end)
        return taken if to_end == waiting else taken + self._read(0, waiting - to_end)

    def peek(self) -> int:
        """How many requests wait; RingBroken."""
        waiting = (self._indices[_REQ_PROD] - self._consumed) & _MASK
        if (self._consumed + waiting - self._responded) & _MASK > self.entries:
            raise RingBroken(f"a request index {waiting} ahead, in a ring of {self.entries}")
        return waiting

    def rearm(self, ahead: int = 1) -> bool:
        """Ask to be told of the request that is so many ahead; True where it is there already."""
        self._indices[_REQ_EVENT] = (self._consumed + ahead) & _MASK
        self._fence()
        return (self._indices[_REQ_PROD] - self._consumed) & _MASK >= ahead

    def respond(self, response: bytes) -> None:
        """Put a response behind those before it; the front end sees it after `push`."""
        self._write(self._responded & (self.entries - 1), response)
        self._responded = (self._responded + 1) & _MASK

    def respond_all(self, responses: bytes) -> None:
        """Put several responses, as long as requests, one behind the other."""
        first = self._responded & (self.entries - 1)
        to_end = (self.entries - first) * self._entry_bytes
        self._write(first, responses[:to_end])
        self._write(0, responses[to_end:])
        self._responded = (self._responded + len(responses) // self._entry_bytes) & _MASK

    def push(self) -> bool:
        """Show the front end the responses; True where it wants to be told."""
        before, after = self._pushed, self._responded
        if before == after:
            return False
        self._indices[_RSP_PROD] = after
        self._pushed = after
        self._fence()
        return (after - self._indices[_RSP_EVENT]) & _MASK < (after - before) & _MASK

    def _fence(self) -> None:
        # A locked instruction: no later load passes the stores before it.
        self._header.fetch_or_64(HEADER_BYTES - 8, 0)

    def _pieces(self, first: int, size_bytes: int) -> list[memoryview]:
        page, offset = divmod(HEADER_BYTES + first * self._entry_bytes, PAGE_BYTES)
        pieces = [self._pages[page][offset : offset + size_bytes]]
        left = size_bytes - len(pieces[0])
        while left:
            page += 1
            pieces.append(self._pages[page][:left])
            left -= len(pieces[-1])
        return pieces

    def _read(self, first: int, count: int) -> bytes:
        return b"".join(self._pieces(first, count * self._entry_bytes))

    def _write(self, first: int, data: bytes) -> None:
        at = 0
        for piece in self._pieces(first, len(data)):
            piece[:] = data[at : at + len(piece)]
            at += len(piece)
