"""Host timers as timerfds: armed from any thread without waking one, expiring in the loop that watches them."""

import os
from collections.abc import Callable

from vmm.kvm._native import ffi, lib
from vmm.kvm.errors import fail

MAX_DELAY_NS = 1 << 62
_NS = 1_000_000_000


class Timer:
    """One timer.  `fired` is called in the watching loop's thread."""

    def __init__(self, fired: Callable[[], None]) -> None:
        self.fd: int = lib.timerfd_create(lib.CLOCK_MONOTONIC, lib.TFD_CLOEXEC | lib.TFD_NONBLOCK)
        if self.fd < 0:
            fail("timerfd_create")
        self._fired = fired

    def arm(self, delay_ns: int, period_ns: int = 0) -> None:
        """Expire once after a delay (at once where it is past), and then every period where one is given."""
        self._set(min(max(delay_ns, 1), MAX_DELAY_NS), min(period_ns, MAX_DELAY_NS))

    def disarm(self) -> None:
        """Do not expire any more."""
        self._set(0, 0)

    def _set(self, delay_ns: int, period_ns: int) -> None:
        when = ffi.new("struct itimerspec *", [divmod(period_ns, _NS), divmod(delay_ns, _NS)])
        if lib.timerfd_settime(self.fd, 0, when, ffi.NULL) < 0:
            fail("timerfd_settime")

    def left_ns(self) -> tuple[int, int]:
        """How long until it expires, 0 where it is not armed, and its period, nanoseconds."""
        when = ffi.new("struct itimerspec *")
        if lib.timerfd_gettime(self.fd, when) < 0:
            fail("timerfd_gettime")
        value, period = when.it_value, when.it_interval
        return value.tv_sec * _NS + value.tv_nsec, period.tv_sec * _NS + period.tv_nsec

    def on_readable(self) -> None:
        """The loop's callback."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return  # disarmed meanwhile
        self._fired()

    def close(self) -> None:
        """Let the descriptor go; nobody watches it any more."""
        os.close(self.fd)
