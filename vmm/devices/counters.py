"""What devices have moved: each queue counts for itself, in its own thread; a back end adds up."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol


class Counting(Protocol):
    """A queue."""

    @property
    def counters(self) -> Counter[str]:
        """What it has moved, by what the count is of."""
        ...


class Totals:
    """The counts of queues that have ended, to which those of running ones are added."""

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()

    def end(self, queues: Iterable[Counting]) -> None:
        """These queues have ended."""
        for queue in queues:
            self._ended.update(queue.counters)

    def add_up(self, queues: Iterable[Counting]) -> dict[str, int]:
        """All together; from any thread."""
        return dict(sum((queue.counters for queue in queues), self._ended))
