"""The PV console: its ring, and the back end that moves bytes between it and the world.

Source: xen/include/public/io/console.h.
"""

import threading
from collections.abc import Callable

from vmm.host import log
from vmm.host.chardev import Sink
from vmm.xenabi.byte_ring import ByteRing, Page, RingBroken

IN_BYTES, OUT_BYTES = 1024, 2048
_OUT = IN_BYTES
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = (IN_BYTES + OUT_BYTES + 4 * index for index in range(4))


class ConsoleRing:
    """The back end's view of a console ring.  An index that lies breaks the ring for good."""

    def __init__(self, page: Page) -> None:
        self._input = ByteRing(page, 0, IN_BYTES, _IN_CONS, _IN_PROD)
        self._output = ByteRing(page, _OUT, OUT_BYTES, _OUT_CONS, _OUT_PROD)
        self.broken = False

    def take_output(self) -> bytes:
        """All that the guest has written since last time."""
        if not self.broken:
            try:
                return self._output.take()
            except RingBroken:
                self.broken = True
        return b""

    def put_input(self, data: bytes) -> int:
        """Hand input to the guest: how many bytes there was room for."""
        if not self.broken:
            try:
                return self._input.put(data)
            except RingBroken:
                self.broken = True
        return 0


class Console:
    """The back end: moves bytes between the ring and the world.

    Owned by the thread of the loop in which `on_event` and `take_input` are called; only `drain` may be called in others.
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

    def drain(self) -> None:
        """Print what the guest has put there so far.  From any thread."""
        with self._output:
            ahead = self._ring.take_output()
            if ahead:
                self._sink.write(ahead)
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
