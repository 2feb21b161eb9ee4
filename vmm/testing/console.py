"""A guest's console in a script: what it printed, what to wait for, what to type."""

import re
import threading
import time
from collections.abc import Callable

from vmm.errors import GuestError

CHECK_S = 0.2
SHOWN_BYTES = 2000


class GuestConsole:
    """`_more` guards the transcript.  `expect` looks behind what it found before."""

    def __init__(self, type_: Callable[[bytes], None], ended: Callable[[], str | None]) -> None:
        self._type = type_
        self._ended = ended
        self._more = threading.Condition()
        self._parts: list[str] = []
        self._text = ""
        self._position = 0

    def write(self, data: bytes) -> None:
        """The console's sink."""
        with self._more:
            self._parts.append(data.decode("utf-8", "replace"))
            self._more.notify_all()

    @property
    def text(self) -> str:
        """All that the guest has printed."""
        with self._more:
            return self._joined()

    def _joined(self) -> str:
        if self._parts:
            self._text += "".join(self._parts)
            self._parts.clear()
        return self._text

    def send(self, text: str) -> None:
        """Type; returns when the guest has room for more."""
        self._type(text.encode())

    def expect(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Wait for a regular expression, `timeout` seconds at most.  GuestError, with the end of what came instead."""
        wanted, deadline = re.compile(pattern, re.S), time.monotonic() + timeout
        with self._more:
            while True:
                ended = self._ended()
                text = self._joined()
                if match := wanted.search(text, self._position):
                    self._position = match.end()
                    return match
                if ended is not None or time.monotonic() > deadline:
                    why = f"the guest ended ({ended})" if ended is not None else f"{timeout:g} s went by"
                    last = text[self._position :][-SHOWN_BYTES:]
                    raise GuestError(f"{why} without {pattern!r} on the console; it showed: {last or 'nothing'}")
                self._more.wait(CHECK_S)
