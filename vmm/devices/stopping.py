"""Ending the threads of a device's queues without waiting for them."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol


class Stoppable(Protocol):
    """Whatever has a thread that can be asked to end."""

    def stop(self, done: Callable[[], None]) -> None:
        """End, and then call `done` in any thread."""
        ...


def stop_all(queues: Sequence[Stoppable], done: Callable[[], None]) -> None:
    """Ask all of them to end; the last one's thread calls `done`, or this one where there is none."""
    left, lock = len(queues), threading.Lock()

    def stopped() -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            done()

    if not queues:
        done()
    for queue in queues:
        queue.stop(stopped)
