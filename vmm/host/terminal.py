"""Typed input for a guest's console: the user's terminal in raw mode, or whatever standard input is.

A thread of its own reads, since regular files cannot be waited for with epoll; it hands over one piece at a time and
waits until the guest has room for it.
"""

import os
import threading
from collections.abc import Callable

ESCAPE = b"\x1d"
"""Ctrl-]: leave the guest, as with `xl console` and telnet."""

CHUNK_BYTES = 512


class Terminal:
    """Input from a descriptor.  `leave` is called for Ctrl-].  Its thread alone reads; `start` says whom for."""

    def __init__(self, fd: int, leave: Callable[[], None]) -> None:
        self._fd = fd
        self._leave = leave
        self._offer: Callable[[bytes], None] | None = None
        self._is_tty = os.isatty(fd)
        self._saved: list[object] | None = None
        self._thread: threading.Thread | None = None

    def start(self, offer: Callable[[bytes], None]) -> None:
        """Raw mode, where this process may have it, and the reading thread; again for the next guest.

        `offer` takes a piece and returns when there is room for the next; it is given b"" at the end of the input.
        """
        self._offer = offer
        if self._thread is not None and self._thread.is_alive():
            return
        if self._is_tty and self._saved is None:
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                return  # in the background: reading would stop the process
            import termios  # which most guests, run by scripts, have no use for
            import tty

            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd)
        self._thread = threading.Thread(target=self._read, name="console-input", daemon=True)
        self._thread.start()

    def restore(self) -> None:
        """The terminal as it was."""
        if self._saved is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
            self._saved = None

    def _read(self) -> None:
        data = b"\0"
        while data and self._offer is not None:
            try:
                data = os.read(self._fd, CHUNK_BYTES)
            except OSError:
                return
            before, escape, _ = data.partition(ESCAPE) if self._is_tty else (data, b"", b"")
            if before or not data:
                self._offer(before)
            if escape:
                self._leave()
                return
