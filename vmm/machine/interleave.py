"""Two sources of output in one sink, line by line: none writes into a line that the other has begun."""

import threading
from collections.abc import Callable

from vmm.host.chardev import Sink

HELD_BYTES, HELD_NS = 4096, 200_000_000
"""So much waits for the other's line to end, and so long, at most."""


class Interleaved:
    """The sink, and whose line is open.  `_lock` guards it; sources write in any thread."""

    def __init__(self, sink: Sink, flush_after: Callable[[int], None]) -> None:
        """`flush_after` has `flush` called after so many nanoseconds."""
        self._sink = sink
        self._flush_after = flush_after
        self._lock = threading.Lock()
        self._open: str | None = None
        self._held: dict[str, bytes] = {}

    def of(self, source: str) -> "Source":
        """The sink, as one source has it."""
        return Source(self, source)

    def write(self, source: str, data: bytes) -> None:
        """What a source prints: at once, unless another has a line open."""
        with self._lock:
            if not data:
                return
            if self._open not in (None, source):
                if source not in self._held:
                    self._flush_after(HELD_NS)
                self._held[source] = self._held.get(source, b"") + data
                if len(self._held[source]) < HELD_BYTES:
                    return
                data = b"\n" + self._held.pop(source)
                self._open = source
            self._write(source, data)
            if self._open is None and self._held:
                waiting, held = self._held.popitem()
                self._write(waiting, held)

    def _write(self, source: str, data: bytes) -> None:
        self._sink.write(data)
        self._open = None if data.endswith(b"\n") else source

    def flush(self) -> None:
        """What waits is printed, on a line of its own.  From any thread."""
        with self._lock:
            for source in list(self._held):
                self._write(source, (b"" if self._open is None else b"\n") + self._held.pop(source))


class Source:
    """A sink for one of the sources."""

    def __init__(self, into: Interleaved, name: str) -> None:
        self._into = into
        self._name = name

    def write(self, data: bytes) -> None:
        """From any thread."""
        self._into.write(self._name, data)
