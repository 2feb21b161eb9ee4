"""Waiting for several threads without waiting."""

import threading
from collections.abc import Callable


class Countdown:
    """Calls back once `one` has been called so often; at once for zero.  From any thread."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self._left = count
        self._done = done
        self._lock = threading.Lock()
        if not count:
            done()

    def one(self) -> None:
        """One of them is done."""
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._done()
