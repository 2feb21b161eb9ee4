"""Something that one thread has another do, waiting for what comes of it."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Errand(Generic[Result]):
    """`run` it in the thread that is to do it; `wait` in the one that wants it done."""

    def __init__(self, action: Callable[[], Result]) -> None:
        self._action = action
        self._results: list[Result] = []
        self._error: Exception | None = None
        self._done = threading.Event()

    def run(self) -> None:
        """Do it; an exception is the other's to handle."""
        try:
            self._results.append(self._action())
        except Exception as error:
            self._error = error
        self._done.set()

    def done(self, timeout_s: float | None = None) -> bool:
        """Wait until it has been run, or for so long: whether it has."""
        return self._done.wait(timeout_s)

    def result(self) -> Result:
        """What came of it; it is done.  Whatever the action raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]
