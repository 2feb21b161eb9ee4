"""Consoles that somebody connects to: a pseudo-terminal, a Unix socket.

Output waits for a connected reader; while there is none, the last of it is kept for the next.
"""

import os
import select
import threading
import tty
from collections.abc import Callable
from pathlib import Path

from vmm.host.chardev import PIECE_BYTES, Offer
from vmm.host.terminal import CHUNK_BYTES
from vmm.host.unixsocket import accept, listener

KEPT_BYTES = 64 << 10
RECONNECT_CHECK_S = 0.1


class _Connected:
    """What a pseudo-terminal and a socket have in common: a reader that comes and goes.

    `_lock` guards the output kept for the next reader; the input thread alone changes who is connected.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._abort = os.eventfd(0, os.EFD_CLOEXEC)
        self._reader: int | None = None
        self._discarding = self._closed = False
        self._offer: Offer | None = None
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """To the reader, waiting for it; kept while there is none."""
        with self._lock:
            self._write(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._discarding:
            if self._reader is None:
                self._kept += view
                del self._kept[:-KEPT_BYTES]
                return
            view = view[self._send(self._reader, view) :]

    def _send(self, fd: int, view: memoryview) -> int:
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        poller.register(self._abort, select.POLLIN)
        events = dict(poller.poll())
        if self._abort in events:
            return 0
        if not events.get(fd, 0) & (select.POLLHUP | select.POLLERR):
            try:
                return os.write(fd, view[:PIECE_BYTES])
            except BlockingIOError:
                return 0
            except OSError:
                pass
        self._reader = None  # it has gone; the input thread sees that too
        return 0

    def start(self, offer: Offer, leave: Callable[[], None]) -> None:
        """The thread that takes input, and readers."""
        self._offer = offer
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="console-input", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        raise NotImplementedError

    def _talk(self, fd: int) -> None:
        """Be connected until the reader goes or pyvmm ends."""
        os.set_blocking(fd, False)
        with self._lock:
            self._reader = fd
            kept = bytes(self._kept)
            self._kept.clear()
            self._write(kept)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(self._abort, select.POLLIN)
        while self._reader is not None and self._abort not in dict(poller.poll()):
            try:
                data = os.read(fd, CHUNK_BYTES)
            except OSError:
                break
            if not data:
                break
            if self._offer is not None:
                self._offer(data)
        with self._lock:
            self._reader = None

    def discard(self) -> None:
        self._discarding = True
        if not self._closed:
            os.eventfd_write(self._abort, 1)

    def close(self) -> None:
        self.discard()
        if self._thread is not None:
            self._thread.join(1)
        if not self._closed and (self._thread is None or not self._thread.is_alive()):
            self._closed = True
            os.close(self._abort)


class UnixServer(_Connected):
    """A listening Unix socket with one reader at a time; its file goes when the console is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._server = listener(path)

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._server, select.POLLIN)
        poller.register(self._abort, select.POLLIN)
        while self._abort not in dict(poller.poll()):
            with accept(self._server) as client:
                self._talk(client.fileno())

    def close(self) -> None:
        """The socket's file goes, too."""
        super().close()
        self._server.close()
        self._path.unlink(missing_ok=True)


class Pty(_Connected):
    """A pseudo-terminal, whose name is logged and printed."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.name = os.ttyname(slave)
        os.close(slave)  # from now on the master hangs up while nobody has it open
        os.write(2, f"pyvmm: {option} is {self.name}\n".encode())

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._master, 0)
        poller.register(self._abort, select.POLLIN)
        while True:
            events = dict(poller.poll(0))
            if self._abort in events:
                return
            if events.get(self._master, 0) & select.POLLHUP:
                threading.Event().wait(RECONNECT_CHECK_S)  # nothing tells that a slave is opened
            else:
                self._talk(self._master)

    def close(self) -> None:
        """The pseudo-terminal goes."""
        super().close()
        os.close(self._master)
