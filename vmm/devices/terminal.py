"""Typed input for a guest's console: the user's terminal in raw mode, or whatever standard input is.

A thread of its own reads, since regular files cannot be waited for with epoll; it hands over one piece at a time and
waits until the guest has room for it.
"""

import os
import termios
import threading
import tty
from collections.abc import Callable

ESCAPE = b"\x1d"
"""Ctrl-]: leave the guest, as with `xl console` and telnet."""

CHUNK_BYTES = 512


class Terminal:
    """Input from a descriptor.  `offer` takes a piece and returns when there is room for the next; `leave` is Ctrl-]."""

    def __init__(self, fd: int, offer: Callable[[bytes], None], leave: Callable[[], None]) -> None:
        self._fd = fd
        self._offer = offer
        self._leave = leave
        self._is_tty = os.isatty(fd)
        self._saved: list[object] | None = None

    def start(self) -> None:
        """Raw mode, where this process may have it, and the reading thread."""
        if self._is_tty:
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                return  # in the background: reading would stop the process
            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd)
        threading.Thread(target=self._read, name="console-input", daemon=True).start()

    def restore(self) -> None:
        """The terminal as it was."""
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
            self._saved = None

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, CHUNK_BYTES)
            except OSError:
                return
            if not data:
                return
            before, escape, _ = data.partition(ESCAPE) if self._is_tty else (data, b"", b"")
            if before:
                self._offer(before)
            if escape:
                self._leave()
                return
