"""A virtio disk over the images that the Xen back end has, too.  Source: Virtual I/O Device Specification 1.1, 5.2."""

import errno
import struct
from collections.abc import Callable, Sequence

from vmm.devices.block.queue import Image
from vmm.devices.virtio.pci import Interrupt
from vmm.devices.virtio.ring import Chain, QueueBroken, VirtQueue, split
from vmm.host import log
from vmm.host.eventloop import EventLoop

SECTOR_BYTES = 512
MAX_SEGMENTS = 126
MAX_DISCARD_SECTORS = 1 << 22
_SEG_MAX, _READ_ONLY, _BLK_SIZE, _FLUSH, _TOPOLOGY, _MQ, _DISCARD, _WRITE_ZEROES = (
    1 << bit for bit in (2, 5, 6, 9, 10, 12, 13, 14)
)
_IN, _OUT, _DO_FLUSH, _GET_ID, _DO_DISCARD, _DO_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
_OK, _IOERR, _UNSUPPORTED = b"\0", b"\1", b"\2"
_HEADER = struct.Struct("<I4xQ")
_RANGE = struct.Struct("<QII")
_ID_BYTES = 20
TURNS = 16


class BlockDevice:
    """One disk; its queues have a thread each."""

    number = 2
    pci_class = 0x010000

    def __init__(
        self, name: str, image: Image, queues: int, release: Callable[[], None], *, discard: bool, zeroes: bool
    ) -> None:
        """`discard`: the guest may give space back; `zeroes`: what it has given back reads as zeros."""
        self._name = name
        self._image = image
        self.queues = queues
        self.release = release
        self.features = _SEG_MAX | _BLK_SIZE | _FLUSH | _MQ
        if image.read_only:
            self.features |= _READ_ONLY
        elif discard:
            self.features |= _DISCARD | (_WRITE_ZEROES if zeroes else 0)
        alignment = image.sector_bytes // SECTOR_BYTES
        self.config = struct.pack(
            "<QIIHBBIBBHIBBHIIIIIB3x",
            image.size_bytes // SECTOR_BYTES, 0, MAX_SEGMENTS, 0, 0, 0, image.sector_bytes, 0, 0, 0, 0, 0, 0, queues,
            MAX_DISCARD_SECTORS, 1, alignment, MAX_DISCARD_SECTORS, 1, 1,
        )  # fmt: skip

    def open(self, features: int, queues: Sequence[tuple[VirtQueue, Interrupt]]) -> "Sequence[BlockServer]":
        """A server for each queue."""
        return [BlockServer(f"{self._name}-{number}", self._image, *queue) for number, queue in enumerate(queues)]

    def closed(self) -> None:
        """The image stays open: the driver may come back."""


class BlockServer:
    """One queue.  Owned by its own thread after `start`."""

    def __init__(self, name: str, image: Image, queue: VirtQueue, interrupt: Interrupt) -> None:
        self._name = name
        self._image = image
        self._queue = queue
        self._interrupt = interrupt
        self._broken = False
        self._loop = EventLoop(name)
        self.bell = self._loop.doorbell(self._serve)

    def start(self) -> None:
        """Begin to serve the queue, in a thread of its own."""
        self._loop.start()
        self.bell.ring()

    def stop(self, done: Callable[[], None]) -> None:
        """Finish what was taken, and then call `done`."""
        self._loop.end(done)

    def _serve(self) -> None:
        if self._broken:
            return
        queue = self._queue
        try:
            for _ in range(TURNS):
                chains = queue.take()
                if not chains and not queue.rearm():
                    return
                for chain in chains:
                    queue.give_back(chain, self._one(chain))
                if queue.push():
                    self._interrupt()
            self.bell.ring()
        except QueueBroken as error:
            self._broken = True
            log.get(__name__).warning("the driver broke its queue; the disk is closed", disk=self._name, reason=str(error))

    def _one(self, chain: Chain) -> int:
        """Carry out a request: how many bytes of it were written."""
        head, data = split(chain.readable, _HEADER.size)
        if len(head) < _HEADER.size or not chain.writable or not len(chain.writable[-1]):
            raise QueueBroken("a request without its header or its status")
        *into, last = chain.writable
        status = last[-1:]
        if len(last) > 1:
            into.append(last[:-1])
        operation, sector = _HEADER.unpack(head)
        try:
            written = self._carry_out(operation, sector, data, into)
            status[:] = _OK
        except OSError as error:
            status[:] = _UNSUPPORTED if error.errno == errno.EOPNOTSUPP else _IOERR
            written = 0
        return written + 1

    def _carry_out(self, operation: int, sector: int, data: list[memoryview], into: list[memoryview]) -> int:
        image, start = self._image, sector * SECTOR_BYTES
        if operation == _IN:
            size = self._check(start, sum(map(len, into)), write=False)
            image.read(into, start)
            return size
        if operation == _OUT:
            self._check(start, sum(map(len, data)), write=True)
            image.write(data, start)
        elif operation == _DO_FLUSH:
            image.flush()
        elif operation == _GET_ID:
            size = min(_ID_BYTES, sum(map(len, into)))
            text = self._name.encode()[:size].ljust(size, b"\0")
            for view in into:
                view[: len(text)], text = text[: len(view)], text[len(view) :]
                if not text:
                    break
            return size
        elif operation in (_DO_DISCARD, _DO_WRITE_ZEROES):
            ranges, _ = split(data, _RANGE.size)
            if len(ranges) < _RANGE.size:
                raise OSError(errno.EINVAL, "a discard without a range")
            first, sectors, _ = _RANGE.unpack(ranges)
            if sectors > MAX_DISCARD_SECTORS:
                raise OSError(errno.EINVAL, "a discard beyond its limit")
            size = self._check(first * SECTOR_BYTES, sectors * SECTOR_BYTES, write=True)
            image.discard(first * SECTOR_BYTES, size)  # a file reads as zeros there
        else:
            raise OSError(errno.EOPNOTSUPP, f"operation {operation}")
        return 0

    def _check(self, start: int, size: int, *, write: bool) -> int:
        image = self._image
        if start + size > image.size_bytes or (start | size) % image.sector_bytes or (write and image.read_only):
            raise OSError(errno.EIO, "outside the disk")
        return size
