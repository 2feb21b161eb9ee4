"""The PV console: its ring, and the back end that moves bytes between it and the world.

Source: xen/include/public/io/console.h.
"""

import struct
import threading
from collections.abc import Callable
from typing import Protocol

from vmm import log
from vmm.devices.chardev import Sink

IN_BYTES, OUT_BYTES = 1024, 2048
_OUT = IN_BYTES
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = (IN_BYTES + OUT_BYTES + 4 * index for index in range(4))
_U32 = struct.Struct("<I")


class Page(Protocol):
    """The ring's page."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes: ...
    def write(self, offset_bytes: int, data: bytes) -> None: ...


class ConsoleRing:
    """The back end's view of a console ring.  Each index is read once; one that lies breaks the ring for good."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.broken = False

    def _index(self, offset: int) -> int:
        return int(_U32.unpack(self._page.read(offset, 4))[0])

    def take_output(self) -> bytes:
        """All that the guest has written since last time."""
        consumed, produced = self._index(_OUT_CONS), self._index(_OUT_PROD)
        waiting = (produced - consumed) & 0xFFFF_FFFF
        if waiting > OUT_BYTES:
            self.broken = True
        if self.broken or not waiting:
            return b""
        start = consumed % OUT_BYTES
        first = min(waiting, OUT_BYTES - start)
        data = self._page.read(_OUT + start, first) + self._page.read(_OUT, waiting - first)
        self._page.write(_OUT_CONS, _U32.pack(produced))
        return data

    def put_input(self, data: bytes) -> int:
        """Hand input to the guest: how many bytes there was room for."""
        consumed, produced = self._index(_IN_CONS), self._index(_IN_PROD)
        used = (produced - consumed) & 0xFFFF_FFFF
        if used > IN_BYTES:
            self.broken = True
        if self.broken:
            return 0
        accepted = data[: IN_BYTES - used]
        for index, byte in enumerate(accepted):
            self._page.write((produced + index) % IN_BYTES, bytes([byte]))
        self._page.write(_IN_PROD, _U32.pack((produced + len(accepted)) & 0xFFFF_FFFF))
        return len(accepted)


class Console:
    """The back end: moves bytes between the ring and the world.

    Owned by the thread of the loop in which `on_event` and `take_input` are called; only `write` may be called in others.
    `_output` guards the ring's output half and its order in the sink.
    """

    def __init__(self, page: Page, sink: Sink, notify_guest: Callable[[], None]) -> None:
        self._ring = ConsoleRing(page)
        self._sink = sink
        self._notify_guest = notify_guest
        self._output = threading.Lock()
        self._reported = False
        self._waiting = b""
        self._taken: Callable[[], None] | None = None

    def take_input(self, data: bytes, taken: Callable[[], None]) -> None:
        """Hand typed bytes to the guest as it has room for them; `taken` is called when it has them all."""
        self._waiting += data
        self._taken = taken
        self._give_input()

    def _give_input(self) -> None:
        if self._waiting:
            accepted = self._ring.put_input(self._waiting)
            self._waiting = self._waiting[accepted:]
            if accepted:
                self._notify_guest()
        if not self._waiting and self._taken is not None:
            taken, self._taken = self._taken, None
            taken()

    def write(self, data: bytes) -> None:
        """What the guest prints past the ring (console_io), behind what it has put there before.  From any thread."""
        with self._output:
            ahead = self._ring.take_output()
            self._sink.write(ahead + data)
        if ahead:
            self._notify_guest()

    def on_event(self) -> None:
        """The guest has rung: take what is there, and ring back since there is room again; it may have taken input."""
        self._give_input()
        with self._output:
            data = self._ring.take_output()  # what is written from now on comes with an event of its own
            if data:
                self._sink.write(data)
        if self._ring.broken and not self._reported:
            self._reported = True
            log.get(__name__).warning("the guest broke its console ring; the console is closed")
        elif data:
            self._notify_guest()
