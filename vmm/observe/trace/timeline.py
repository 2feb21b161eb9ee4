"""A run as one page: its phases from exec to the guest's init, what happened when, and where the time went.

`Timeline` collects while the guest runs; `vmm.observe.trace.page` draws.
"""

import os
import re
import threading
import time
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from vmm.observe.trace.records import KINDS, Record

BINS = 240
SLOWEST = 12
_INIT = re.compile(rb"Run (/\S+) as init process")
_LONGEST_LINE_BYTES = 400


class Phase(NamedTuple):
    """A stretch of the run, seconds since exec."""

    name: str
    start_s: float
    end_s: float


class Line(NamedTuple):
    """A line of the console, and when its end came, seconds since exec."""

    at_s: float
    text: str


class Gap(NamedTuple):
    """A time without console output."""

    seconds: float
    start_s: float
    before: str
    after: str


class Timeline:
    """A tracer's consumer and a console's onlooker.  `_lock` guards all that it has collected."""

    def __init__(self) -> None:
        self._exec = time.monotonic() - _age_s()
        self._lock = threading.Lock()
        self._marks: list[tuple[str, float]] = [("Python and its imports", self._now())]
        self._times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.names: Counter[str] = Counter()
        self.lines: list[Line] = []
        self._rest = b""
        self._init = False

    def _now(self) -> float:
        return time.monotonic() - self._exec

    def mark(self, phase: str) -> None:
        """A phase of pyvmm's own has ended."""
        with self._lock:
            self._marks.append((phase, self._now()))

    def take(self, record: Record) -> None:
        """A record happens now."""
        now = self._now()
        with self._lock:
            if not self.names:
                self._marks.append(("guest's first instructions", now))
            self._times[record.kind].append(now)
            self.names[record.name] += 1

    def sendall(self, data: bytes, /) -> None:
        """Console output comes now."""
        now = self._now()
        with self._lock:
            if not self.lines and not self._rest:
                self._marks.append(("guest, before its first line", now))
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[-_LONGEST_LINE_BYTES:]
            for raw in whole:
                self._line(now, raw)

    def _line(self, now: float, raw: bytes) -> None:
        self.lines.append(Line(now, raw[:_LONGEST_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")))
        if not self._init and (match := _INIT.search(raw)):
            self._init = True
            self._marks.append((f"kernel, to {match[1].decode('ascii', 'replace')}", now))

    def close(self) -> None:
        """The run is over."""
        self.mark("guest's user space" if self._init else "guest")

    # --------------------------------------------------------------------------- what it amounts to

    @property
    def seconds(self) -> float:
        """From exec to the end."""
        return self._marks[-1][1]

    def phases(self) -> list[Phase]:
        """What came after what."""
        found, start = [], 0.0
        for name, end in sorted(self._marks, key=lambda mark: mark[1]):
            found.append(Phase(name, start, end))
            start = end
        return found

    def counts(self, kind: str) -> list[int]:
        """How many records of a kind fell into each of BINS equal parts of the run."""
        width = self.seconds / BINS or 1
        bins = [0] * BINS
        for when in self._times[kind]:
            bins[min(int(when / width), BINS - 1)] += 1
        return bins

    def gaps(self) -> list[Gap]:
        """The longest times between two lines of the console, longest first."""
        found = [
            Gap(after.at_s - before.at_s, before.at_s, before.text, after.text) for before, after in pairwise(self.lines)
        ]
        return sorted(found, reverse=True)[:SLOWEST]


def _age_s() -> float:
    """How long this process has been there: its start is the exec, to the clock tick."""
    with open("/proc/self/stat", "rb") as stat:
        ticks = int(stat.read().rpartition(b") ")[2].split()[19])
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 0)
