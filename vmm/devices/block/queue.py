"""One ring of a block device and the thread that serves it.

Everything that a request of the guest's may do lives here.  Segments of the guest's own memory go to the system call as
they are; the requests themselves are copied before they are looked at.
"""

import errno
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from vmm.devices.block.protocol import (
    MAX_INDIRECT_SEGMENTS,
    MAX_SEGMENTS,
    SECTOR_BYTES,
    SECTORS_A_PAGE,
    SEGMENT,
    SEGMENTS_A_PAGE,
    Layout,
    Op,
    Status,
)
from vmm.devices.bus.xenbus import Bound
from vmm.devices.ring.granted import GrantedPages
from vmm.devices.ring.shared import SharedRing
from vmm.host import log
from vmm.host.eventloop import EventLoop
from vmm.xenabi.byte_ring import RingBroken
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.values import XenError

MAX_PERSISTENT = 8192 + 1024
"""Pages that a front end may leave mapped: a full ring of requests with all their segments, and their indirect pages."""

TURNS = 16
"""Times that the ring is emptied before the thread looks at what else there is to do: to end, say."""

PUSH_BYTES = 256 << 10
"""Data after which the front end sees the responses so far, in a batch that goes on."""


class Image(Protocol):
    """What holds the data; methods raise OSError."""

    size_bytes: int
    sector_bytes: int
    read_only: bool

    def read(self, views: list[memoryview], offset_bytes: int) -> None:
        """Fill these views from a position on, bytes.  OSError."""
        ...

    def write(self, views: list[memoryview], offset_bytes: int) -> None:
        """Write these views from a position on, bytes.  OSError."""
        ...

    def flush(self) -> None:
        """Have everything written reach the medium.  OSError."""
        ...

    def discard(self, offset_bytes: int, size_bytes: int) -> None:
        """Forget a stretch, bytes.  OSError."""
        ...


class BadRequest(Exception):
    """The request cannot be meant; it is answered with an error."""


class BlockQueue:
    """Owned by its own thread after `start`."""

    def __init__(
        self,
        name: str,
        image: Image,
        pages: GrantedPages,
        refs: list[int],
        layout: Layout,
        *,
        persistent: bool,
        failed: Callable[[str], None],
    ) -> None:
        self._image = image
        self._pages = pages
        self._refs = refs
        self._layout = layout
        self._persistent = persistent
        self._kept: dict[int, memoryview] = {}
        self._failed = failed
        self._broken = False
        self.counters: Counter[str] = Counter()
        self._told: set[int] = set()
        self._name = name
        self._ring: SharedRing = pages.map_ring(refs, layout.entry_bytes)
        self._channel: Bound | None = None
        self._loop = EventLoop(name)
        self.bell = self._loop.doorbell(self._serve)

    def start(self, channel: Bound) -> None:
        """Serve the ring; `channel` is the front end's."""
        self._channel = channel
        self._loop.start()
        self.bell.ring()  # for what it has put there already

    def stop(self, done: Callable[[], None]) -> None:
        """Finish what has been taken, unmap everything, end the thread, then call `done` in it.  From any thread."""

        def end() -> None:
            if self._channel is not None:
                self._channel.close()
            self._broken = True
            self._pages.unmap_all([*self._kept, *self._refs], write=True)
            self._kept.clear()
            done()

        self._loop.end(end)

    # ------------------------------------------------------------------------------------- requests

    def _serve(self) -> None:
        if self._broken:
            return
        try:
            for _ in range(TURNS):
                requests = self._ring.take()
                if not requests and not self._ring.rearm():
                    return
                self._carry_out(requests)
            self.bell.ring()
        except RingBroken as error:
            self._broken = True
            self._failed(f"the front end broke its ring: {error}")

    def _carry_out(self, requests: list[bytes]) -> None:
        ring, respond = self._ring, self._layout.response.pack
        unseen = 0
        self.counters["requests"] += len(requests)
        for request in requests:
            op, _, number, _ = self._layout.request.unpack_from(request)
            try:
                moved = self._one(op, request)
                unseen += moved
                self.counters["bytes"] += moved
                status = Status.OKAY
            except (BadRequest, XenError):
                status = Status.ERROR
            except OSError as error:
                status = Status.EOPNOTSUPP if error.errno == errno.EOPNOTSUPP else Status.ERROR
                self._tell(op, error)
            ring.respond(respond(number, request[1] if op == Op.INDIRECT else op, status))
            if unseen >= PUSH_BYTES:
                unseen = 0
                self._push()
        self._push()

    def _push(self) -> None:
        if self._ring.push() and self._channel is not None:
            self._channel.notify()

    def _tell(self, op: int, error: OSError) -> None:
        """Log each kind of error once: a guest must not fill the host's log."""
        if error.errno not in self._told:
            self._told.add(error.errno or 0)
            log.get(__name__).warning("disk error", disk=self._name, op=op, error=error.strerror)

    def _one(self, op: int, request: bytes) -> int:
        """Do it: the bytes of data that it moved.  BadRequest, XenError, OSError."""
        layout, image = self._layout, self._image
        if op in (Op.READ, Op.WRITE, Op.WRITE_BARRIER):
            _, count, _, sector = layout.request.unpack_from(request)
            if count > MAX_SEGMENTS:
                raise BadRequest
            at = layout.segments_at
            return self._transfer(op, sector, request[at : at + count * SEGMENT.size])
        if op == Op.INDIRECT:
            return self._indirect(request)
        if op == Op.FLUSH_DISKCACHE:
            image.flush()
            return 0
        if op == Op.DISCARD:
            _, _, _, sector, sectors = layout.discard.unpack_from(request)
            start, size = sector * SECTOR_BYTES, sectors * SECTOR_BYTES
            self._check(start, size, write=True)
            image.discard(start, size)
            return 0
        raise OSError(errno.EOPNOTSUPP, f"operation {op}")

    def _check(self, start: int, size: int, *, write: bool) -> None:
        image = self._image
        if (
            not size
            or start + size > image.size_bytes
            or (start | size) % image.sector_bytes
            or (write and image.read_only)
        ):
            raise BadRequest

    def _indirect(self, request: bytes) -> int:
        _, op, count, _, sector, *refs = self._layout.indirect.unpack_from(request)
        if op not in (Op.READ, Op.WRITE) or not 0 < count <= MAX_INDIRECT_SEGMENTS:
            raise BadRequest
        segments = b""
        for ref in refs[: -(-count // SEGMENTS_A_PAGE)]:
            held: list[int] = []
            try:
                segments += bytes(self._page(ref, False, held))  # copied: the guest may change it meanwhile
            finally:
                self._pages.unmap_all(held, write=False)
        return self._transfer(op, sector, segments[: count * SEGMENT.size])

    def _transfer(self, op: int, sector: int, segments: bytes) -> int:
        into_guest = op == Op.READ
        held: list[int] = []
        try:
            views, size = [], 0
            kept = self._kept
            for ref, first, last in SEGMENT.iter_unpack(segments):
                page = kept.get(ref) or self._page(ref, into_guest, held)
                if first == 0 and last == SECTORS_A_PAGE - 1:
                    views.append(page)
                    size += PAGE_BYTES
                elif first <= last < SECTORS_A_PAGE:
                    views.append(page[first * SECTOR_BYTES : (last + 1) * SECTOR_BYTES])
                    size += (last + 1 - first) * SECTOR_BYTES
                else:
                    raise BadRequest
            start, image = sector * SECTOR_BYTES, self._image
            if not size and op == Op.WRITE_BARRIER:
                image.flush()
                return 0
            self._check(start, size, write=not into_guest)
            if into_guest:
                image.read(views, start)
            elif op == Op.WRITE:
                image.write(views, start)
            else:  # what came before is done: one thread serves one request after the other
                image.flush()
                image.write(views, start)
                image.flush()
            return size
        finally:
            if held:
                self._pages.unmap_all(held, write=into_guest)

    def _page(self, ref: int, write: bool, held: list[int]) -> memoryview:
        """A granted page: kept where the front end leaves its grants in place, else noted in `held`."""
        found = self._kept.get(ref)
        if found is not None:
            return found
        if self._persistent and len(self._kept) < MAX_PERSISTENT:
            try:
                page = self._kept[ref] = self._pages.map(ref, write=True)
                return page
            except XenError:
                pass  # granted for reading only, so not to be kept
        page = self._pages.map(ref, write=write)
        held.append(ref)
        return page
