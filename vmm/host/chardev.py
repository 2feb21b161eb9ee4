"""Where a console's bytes go to and come from: standard output, a file, a pseudo-terminal, a Unix socket.

Output waits for whoever reads it, so none is lost and none piles up.
"""

import os
import select
import stat
import threading
from collections.abc import Callable
from typing import Protocol

from vmm.host import log
from vmm.host.terminal import Terminal

PIECE_BYTES = select.PIPE_BUF
"""What a pipe that can be written to takes without waiting."""

Offer = Callable[[bytes], None]
"""Takes input and returns when there is room for more; b"" is the end of it."""


class Sink(Protocol):
    """Whoever takes console output; called from any thread."""

    def write(self, data: bytes) -> None:
        """All of it, in order."""
        ...


class Chardev(Sink, Protocol):
    """Both directions of a console."""

    def start(self, offer: Offer, leave: Callable[[], None]) -> None:
        """Let input come; `leave` is called when the user wants to leave the guest."""
        ...

    def discard(self) -> None:
        """Take no more output, and let a writer that waits return."""
        ...

    def close(self) -> None:
        """Let everything go."""
        ...


class Onlooker(Protocol):
    """A socket whose owner looks at a console."""

    def sendall(self, data: bytes, /) -> None:
        """All of it; OSError where it is not taken."""
        ...


class Tee:
    """A console's sink, and whoever else looks at its output.  `_lock` guards who does."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._onlookers: list[Onlooker] = []

    def write(self, data: bytes) -> None:
        """To all of them; one that does not take it is let go."""
        self._sink.write(data)
        if self._onlookers:
            with self._lock:
                for onlooker in list(self._onlookers):
                    try:
                        onlooker.sendall(data)
                    except OSError:
                        self._onlookers.remove(onlooker)

    def add(self, onlooker: Onlooker) -> None:
        """Show it what comes from now on."""
        with self._lock:
            self._onlookers.append(onlooker)

    def remove(self, onlooker: Onlooker) -> None:
        """Show it nothing more."""
        with self._lock:
            if onlooker in self._onlookers:
                self._onlookers.remove(onlooker)


class Output:
    """Output to a descriptor, and no input.  Writers from any thread; `_lock` keeps their pieces whole."""

    def __init__(self, fd: int | None, *, owned: bool = False) -> None:
        self._fd = fd
        self._owned = owned
        self._lock = threading.Lock()
        self._abort = os.eventfd(0, os.EFD_CLOEXEC)
        self._always_ready = fd is None or stat.S_ISREG(os.fstat(fd).st_mode)
        self._discarding = self._closed = False

    def start(self, offer: Offer, leave: Callable[[], None]) -> None:
        """There is no input."""

    def write(self, data: bytes) -> None:
        """All of it, in order; a reader that is gone makes later output vanish, once logged."""
        with self._lock:
            if self._fd is None or self._discarding:
                return
            view = memoryview(data)
            while view and (self._always_ready or self._ready(self._fd)):
                try:
                    view = view[os.write(self._fd, view[:PIECE_BYTES]) :]
                except BlockingIOError:
                    pass  # another process that shares the pipe was quicker
                except OSError as error:
                    log.get(__name__).warning("console output is lost from here on", reason=error.strerror)
                    self._discarding = True
                    return

    def _ready(self, fd: int) -> bool:
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        poller.register(self._abort, select.POLLIN)
        return self._abort not in dict(poller.poll())

    def discard(self) -> None:
        """Take no more output, and let a writer that waits return."""
        self._discarding = True
        if not self._closed:
            os.eventfd_write(self._abort, 1)

    def close(self) -> None:
        """Let the descriptors go that are its own."""
        self.discard()
        with self._lock:
            if self._fd is not None and self._owned:
                os.close(self._fd)
            self._fd = None
            if not self._closed:
                self._closed = True
                os.close(self._abort)


class Stdio(Output):
    """Standard output and the user's terminal, or whatever standard input is."""

    def __init__(self) -> None:
        super().__init__(1)
        self._terminal: Terminal | None = None

    def start(self, offer: Offer, leave: Callable[[], None]) -> None:
        """Raw mode where there is a terminal."""
        if self._terminal is None:
            self._terminal = Terminal(0, leave)
        self._terminal.start(offer)

    def close(self) -> None:
        """Give the terminal back as it was."""
        if self._terminal is not None:
            self._terminal.restore()
        super().close()
