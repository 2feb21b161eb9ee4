"""Looking on at a guest that runs: records for somebody who comes and goes, and who may be slow.

Records are made in the threads in which things happen, which never wait for whoever reads them: what is not taken
in time is counted as lost.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from vmm.machine.domain import Domain
from vmm.observe.trace.filters import parse_filter
from vmm.observe.trace.records import Record
from vmm.observe.trace.stats import Stats
from vmm.observe.trace.tracer import Consumer, Tracer
from vmm.observe.trace.writers import as_json as as_json_line
from vmm.observe.trace.writers import line

MAX_WAITING = 65536
CHECK_S = 0.2


class Queue:
    """A consumer of records, and lines of text for one reader.  `_more` guards what waits."""

    def __init__(self, wanted: Callable[[Record], bool]) -> None:
        self._wanted = wanted
        self._more = threading.Condition()
        self._waiting: deque[Record] = deque()
        self._lost = 0

    def take(self, record: Record) -> None:
        """The tracer's consumer."""
        if self._wanted(record):
            with self._more:
                if len(self._waiting) < MAX_WAITING:
                    self._waiting.append(record)
                else:
                    self._lost += 1
                self._more.notify()

    def close(self) -> None:
        """Nothing to let go."""

    def next(self, timeout_s: float) -> tuple[list[Record], int]:
        """What waits, and how many were lost before it."""
        with self._more:
            self._more.wait_for(lambda: self._waiting, timeout_s)
            found, lost = list(self._waiting), self._lost
            self._waiting.clear()
            self._lost = 0
            return found, lost


def follow(domain: Domain, text: str, *, as_json: bool, left: Callable[[], bool]) -> Iterator[str]:
    """A running guest's records as lines, until it ends or `left` says that nobody reads any more.  UsageError."""
    queue = Queue(parse_filter(text).matches)
    tracer = Tracer([queue])
    hooks = tracer.attach(domain)
    try:
        while True:
            over = domain.life.over
            records, lost = queue.next(CHECK_S)
            for record in records:
                yield as_json_line(record) if as_json else line(record) + "\n"
            if lost:
                yield f"... {lost} records were lost, since they were not read in time\n"
            if left() or (over and not records):
                return
    finally:
        domain.hooks.detach(hooks)


def count(domain: Domain, seconds: float | None, left: Callable[[], bool]) -> list[str]:
    """A table of what a running guest does, for so long, or until it ends or nobody waits for it."""
    stats = Stats()
    consumers: list[Consumer] = [stats]
    tracer = Tracer(consumers)
    hooks = tracer.attach(domain)
    pause = threading.Event()
    try:
        while not left() and not domain.life.over and (seconds is None or tracer.elapsed_s < seconds):
            pause.wait(CHECK_S if seconds is None else min(CHECK_S, max(seconds - tracer.elapsed_s, 0)))
    finally:
        domain.hooks.detach(hooks)
    devices = [] if domain.devices is None else list(domain.devices.counters().items())
    return stats.table(tracer.elapsed_s, devices)
