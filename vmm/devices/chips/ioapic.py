"""An IOAPIC: interrupt lines in, messages to LAPICs out.

KVM has one of its own, but gives it only together with an 8259, which no PVH domain has, and with which it refuses to
inject the callback vector of Linux before 6.0.  So LAPICs alone are KVM's; it tells here when a level interrupt ends.
Source: Intel 82093AA data sheet; version 0x11, as Xen shows it to a PVH dom0.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

VERSION = 0x11

_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _TABLE = 0, 1, 2, 0x10
_VECTOR, _DELIVERY_MODE = 0xFF, 7 << 8
_LOGICAL, _STATUS, _REMOTE_IRR, _LEVEL, _MASKED = 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16
_READ_ONLY = _STATUS | _REMOTE_IRR
_WRITABLE = 0xFF00_0000_0001_FFFF & ~_READ_ONLY
_MESSAGE_ADDRESS = 0xFEE0_0000
_MESSAGE_LOGICAL, _MESSAGE_ASSERT, _MESSAGE_LEVEL = 1 << 2, 1 << 14, 1 << 15

Route = Callable[[int, tuple[int, int] | None], None]
"""Says where a line leads: the address and data of its message, or None while it is masked."""


def message(entry: int) -> tuple[int, int]:
    """The message of a redirection entry: address and data."""
    address = _MESSAGE_ADDRESS | (entry >> 56) << 12 | (_MESSAGE_LOGICAL if entry & _LOGICAL else 0)
    data = entry & (_VECTOR | _DELIVERY_MODE)
    return address, data | (_MESSAGE_LEVEL | _MESSAGE_ASSERT if entry & _LEVEL else 0)


class IoApicRecord(NamedTuple):
    """An IOAPIC as data."""

    selected: int
    id: int
    entries: tuple[int, ...]
    high: tuple[bool, ...]


class IoApic:
    """`_lock` guards the table and the lines; `pulse` sends a line's message once."""

    def __init__(self, route: Route, pulse: Callable[[int], None], lines: int) -> None:
        self._route = route
        self._pulse = pulse
        self._lock = threading.Lock()
        self._selected = 0
        self._id = 0
        self._entries = [_MASKED] * lines
        self._high = [False] * lines

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        """The register select, or the register that it names."""
        with self._lock:
            if offset == _SELECT:
                return self._selected
            return self._register(self._selected) if offset == _WINDOW else 0

    def _register(self, number: int) -> int:
        if number in (_ID, _ARBITRATION):
            return self._id << 24
        if number == _VERSION:
            return (len(self._entries) - 1) << 16 | VERSION
        line, upper = divmod(number - _TABLE, 2)
        if not 0 <= line < len(self._entries):
            return 0xFFFF_FFFF
        return self._entries[line] >> 32 * upper & 0xFFFF_FFFF

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        """Choose a register, or write to the one that is chosen."""
        with self._lock:
            if offset == _SELECT:
                self._selected = value & 0xFF
            elif offset == _WINDOW and self._selected == _ID:
                self._id = value >> 24 & 0xF
            elif offset == _WINDOW:
                line, upper = divmod(self._selected - _TABLE, 2)
                if 0 <= line < len(self._entries):
                    self._set_entry(line, upper, value & 0xFFFF_FFFF)

    def _set_entry(self, line: int, upper: int, value: int) -> None:
        before = self._entries[line]
        kept = before & (0xFFFF_FFFF if upper else 0xFFFF_FFFF << 32)
        entry = (kept | value << 32 * upper) & _WRITABLE | before & _READ_ONLY
        if not entry & _LEVEL:
            entry &= ~_REMOTE_IRR
        self._entries[line] = entry
        self._route(line, None if entry & _MASKED else message(entry))
        if entry & _LEVEL:
            self._deliver_level(line)

    def _deliver_level(self, line: int) -> None:
        if self._high[line] and not self._entries[line] & (_MASKED | _REMOTE_IRR):
            self._entries[line] |= _REMOTE_IRR
            self._pulse(line)

    def set_line(self, line: int, high: bool) -> None:
        """A device raises or lowers its line.  From any thread."""
        with self._lock:
            rose = high and not self._high[line]
            self._high[line] = high
            if self._entries[line] & _LEVEL:
                self._deliver_level(line)
            elif rose and not self._entries[line] & _MASKED:
                self._pulse(line)

    def pulse_line(self, line: int) -> None:
        """An edge."""
        self.set_line(line, True)
        self.set_line(line, False)

    def end_of_interrupt(self, vector: int) -> None:
        """A LAPIC has ended a level interrupt: one whose line is still high comes again."""
        with self._lock:
            for line, entry in enumerate(self._entries):
                if entry & _LEVEL and entry & _VECTOR == vector and entry & _REMOTE_IRR:
                    self._entries[line] &= ~_REMOTE_IRR
                    self._deliver_level(line)

    def record(self) -> IoApicRecord:
        """The table and the lines as data."""
        with self._lock:
            return IoApicRecord(self._selected, self._id, tuple(self._entries), tuple(self._high))

    def restore(self, record: IoApicRecord) -> None:
        """Go on as another did: its lines lead where they led."""
        with self._lock:
            self._selected, self._id = record.selected, record.id
            self._entries, self._high = list(record.entries), list(record.high)
            for line, entry in enumerate(self._entries):
                self._route(line, None if entry & _MASKED else message(entry))

    def bound(self) -> list[tuple[int, int]]:
        """The lines that are unmasked, with their vectors."""
        with self._lock:
            return [(line, entry & _VECTOR) for line, entry in enumerate(self._entries) if not entry & _MASKED]
