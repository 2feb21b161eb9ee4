"""Xen's own console, as the initial domain uses it: console_io and VIRQ_CONSOLE.

Source: xen/include/public/xen.h (CONSOLEIO_*).
"""

import threading
from collections.abc import Callable

from vmm.host.chardev import Sink

INPUT_BYTES = 4096


class HypervisorConsole:
    """`_lock` guards the input; output goes straight to the sink.  Called from any thread."""

    def __init__(self, sink: Sink, notify_guest: Callable[[], None]) -> None:
        self._sink = sink
        self._notify_guest = notify_guest
        self._lock = threading.Lock()
        self._input = b""
        self._waiting = b""
        self._taken: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        """CONSOLEIO_write."""
        self._sink.write(data)

    def take_input(self, data: bytes, taken: Callable[[], None]) -> None:
        """Keep typed bytes for the guest; `taken` is called when there is room for more."""
        with self._lock:
            self._waiting += data
            self._taken = taken
            done = self._accept()
        self._notify_guest()
        if done is not None:
            done()

    def _accept(self) -> Callable[[], None] | None:
        room = INPUT_BYTES - len(self._input)
        self._input += self._waiting[:room]
        self._waiting = self._waiting[room:]
        if self._waiting:
            return None
        taken, self._taken = self._taken, None
        return taken

    def read(self, count: int) -> bytes:
        """CONSOLEIO_read: at most so many of the bytes that were typed."""
        with self._lock:
            data, self._input = self._input[:count], self._input[count:]
            done = self._accept()
        if done is not None:
            done()
        return data

    def on_event(self) -> None:
        """There is no ring that could ring."""
