"""A CMOS real-time clock: the host's UTC, an alarm, and the interrupt of both.

Source: Motorola MC146818A data sheet; Linux drivers/rtc/rtc-mc146818-lib.c for the century.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from vmm.devices.bus.ports import PortRange

RTC_PORTS = PortRange(0x70, 0x71)
RTC_LINE = 8
CENTURY = 0x32

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_ALARM = (1, 3, 5)  # seconds, minutes, hours
_A, _B, _C, _D = 10, 11, 12, 13
_DIVIDER_RUNS = 0x26
_SET, _PERIODIC, _ALARM_BIT, _UPDATE, _BINARY, _24_HOURS = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 2, 1 << 1
_INTERRUPT = 1 << 7
_VALID = 1 << 7
_ANY = 0xC0
"""An alarm byte with both of these bits matches every value."""

Arm = Callable[[int], None]


class RtcRecord(NamedTuple):
    """The clock as data: its registers, and how far its time is ahead of the host's, seconds."""

    selected: int
    registers: bytes
    ahead_s: float
    flags: int


class Rtc:
    """`_lock` guards its registers.  `arm(delay_ns)` has `tick` called after so long, 0 never; `interrupt` is its edge."""

    ranges = (RTC_PORTS,)

    def __init__(self, arm: Arm, interrupt: Callable[[], None], clock: Callable[[], float] = time.time) -> None:
        self._arm = arm
        self._interrupt = interrupt
        self._clock = clock
        self._lock = threading.Lock()
        self._index = 0
        self._bytes = bytearray(128)
        self._bytes[_A], self._bytes[_B] = _DIVIDER_RUNS, _24_HOURS
        self._ahead_s = 0.0
        self._flags = 0

    def record(self) -> RtcRecord:
        """The clock as data."""
        with self._lock:
            return RtcRecord(self._index, bytes(self._bytes), self._ahead_s, self._flags)

    def restore(self, record: RtcRecord) -> None:
        """Go on as another did."""
        with self._lock:
            self._index, self._bytes, self._ahead_s, self._flags = (
                record.selected, bytearray(record.registers), record.ahead_s, record.flags,
            )  # fmt: skip
            self._arm(self._to_next_second() if self._bytes[_B] & (_ALARM_BIT | _UPDATE) else 0)

    # --------------------------------------------------------------------------------------- ports

    def read_port(self, port: int, size_bytes: int) -> int:
        """The index is write-only; flags are forgotten once they have been read."""
        if port == RTC_PORTS.first:
            return 0xFF
        with self._lock:
            index = self._index
            if index == _C:
                flags, self._flags = self._flags, 0
                return flags
            if index == _D:
                return _VALID
            return self._now().get(index, self._bytes[index])

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """Choose a register, or write to the one that is chosen."""
        value &= 0xFF
        with self._lock:
            if port == RTC_PORTS.first:
                self._index = value & 0x7F
                return
            index = self._index
            if index in (_C, _D):
                return
            if index in (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, CENTURY) and not self._bytes[_B] & _SET:
                self._set({index: value})
            elif index == _B:
                self._control(value)
            else:
                self._bytes[index] = value

    def _control(self, value: int) -> None:
        started, stopped = not value & _SET, not self._bytes[_B] & _SET
        if not started and stopped:  # the clock stands: it shows what is written to it
            for index, shown in self._now().items():
                self._bytes[index] = shown
        self._bytes[_B] = value & ~_PERIODIC
        if started and not stopped:
            self._set({index: self._bytes[index] for index in (*range(0, 10, 2), _DAY, _YEAR, CENTURY)})
        self._arm(self._to_next_second() if value & (_ALARM_BIT | _UPDATE) else 0)

    # ---------------------------------------------------------------------------------------- time

    def _time(self) -> float:
        return self._clock() + self._ahead_s

    def _to_next_second(self) -> int:
        return int((1 - self._time() % 1) * 1e9) + 1_000_000

    def _encode(self, value: int) -> int:
        return value if self._bytes[_B] & _BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._bytes[_B] & _BINARY else (value >> 4) * 10 + (value & 0xF)

    def _now(self) -> dict[int, int]:
        """The time registers, while the clock runs."""
        if self._bytes[_B] & _SET:
            return {}
        now = time.gmtime(self._time())
        hour = self._encode(now.tm_hour)
        if not self._bytes[_B] & _24_HOURS:
            hour = self._encode((now.tm_hour - 1) % 12 + 1) | (0x80 if now.tm_hour >= 12 else 0)
        shown = {
            _SECONDS: now.tm_sec, _MINUTES: now.tm_min, _WEEKDAY: (now.tm_wday + 1) % 7 + 1, _DAY: now.tm_mday,
            _MONTH: now.tm_mon, _YEAR: now.tm_year % 100, CENTURY: now.tm_year // 100,
        }  # fmt: skip
        return {index: self._encode(value) for index, value in shown.items()} | {_HOURS: hour}

    def _set(self, written: dict[int, int]) -> None:
        """Set the clock; what cannot be a time is not heeded."""
        import calendar  # few guests set it

        registers = self._now() | written
        hour = self._decode(registers[_HOURS] & 0x7F)
        if not self._bytes[_B] & _24_HOURS:
            hour = hour % 12 + (12 if registers[_HOURS] & 0x80 else 0)
        year = self._decode(registers[CENTURY]) * 100 + self._decode(registers[_YEAR])
        month, day, minute, second = (self._decode(registers[at]) for at in (_MONTH, _DAY, _MINUTES, _SECONDS))
        if 1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60:
            self._ahead_s = calendar.timegm((year, month, day, hour, minute, second)) - self._clock()

    def tick(self) -> None:
        """A second has begun: its interrupts."""
        with self._lock:
            control = self._bytes[_B]
            if not control & (_ALARM_BIT | _UPDATE) or control & _SET:
                return
            now = self._now()
            happened = _UPDATE
            alarm = [self._bytes[at] for at in _ALARM]
            times = [now[_SECONDS], now[_MINUTES], now[_HOURS]]
            if all(wanted >= _ANY or wanted == shown for wanted, shown in zip(alarm, times, strict=True)):
                happened |= _ALARM_BIT
            self._flags |= happened
            due = happened & control & (_ALARM_BIT | _UPDATE)
            if due:
                self._flags |= _INTERRUPT
            self._arm(self._to_next_second())
        if due:
            self._interrupt()
