"""What `pyvmm run --stats` prints at the end: hypercalls, exits, events and devices, counted."""

import threading
from collections import Counter

from vmm.observe.trace.records import Event, Exit, Hypercall, Record, StoreMessage


class Stats:
    """Counts records.  `_lock` guards the counts: vCPUs and devices come in threads of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.time_ns: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.events: Counter[tuple[int, str]] = Counter()
        self.store: Counter[str] = Counter()

    def take(self, record: Record) -> None:
        """Count it."""
        with self._lock:
            if isinstance(record, Hypercall):
                self.calls[record.name] += 1
                self.time_ns[record.name] += record.duration_ns
                self.errors[record.name] += record.failed
            elif isinstance(record, Event):
                self.events[record.port, record.source] += 1
            elif isinstance(record, StoreMessage):
                self.store[record.name] += 1
            elif isinstance(record, Exit):
                self.exits[record.reason] += 1

    def close(self) -> None:
        """Nothing to let go."""

    def table(self, seconds: float, devices: list[tuple[str, dict[str, int]]]) -> list[str]:
        """Lines; `devices` are names with their counters of requests and bytes."""
        with self._lock:
            lines = [f"{'% time':>7} {'seconds':>10} {'us/call':>9} {'calls':>9} {'errors':>7}  hypercall"]
            total = sum(self.time_ns.values()) or 1
            for name, spent in self.time_ns.most_common():
                calls = self.calls[name]
                lines.append(
                    f"{100 * spent / total:7.2f} {spent / 1e9:10.6f} {spent / calls / 1e3:9.1f} {calls:9} "
                    f"{self.errors[name] or '':>7}  {name}"
                )
            lines.append(
                f"{100:7.2f} {sum(self.time_ns.values()) / 1e9:10.6f} {'':>9} {self.calls.total():9} "
                f"{self.errors.total() or '':>7}  total"
            )
            lines += _section("exits", self.exits.most_common(), seconds)
            rows = [(f"port {port} ({source})", count) for (port, source), count in self.events.most_common()]
            lines += _section("events", rows, seconds)
            lines += _section("xenstore", self.store.most_common(), seconds)
            for name, counters in devices:
                lines += _section(name, list(counters.items()), seconds)
        return lines


def _section(title: str, rows: list[tuple[str, int]], seconds: float) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{'count':>12} {'a second':>12}  {title}"]
    return lines + [f"{count:>12} {count / seconds if seconds else 0:>12.1f}  {name}" for name, count in rows]
