"""A domain's watchdogs (SCHEDOP_watchdog): timers that end it unless it sets them again in time."""

import errno
import threading
from collections.abc import Callable

from vmm.kvm.timer import Timer
from vmm.xenabi.values import XenError

NO_SPACE = -errno.ENOSPC & 0xFFFF_FFFF
"""Xen's answer where all are in use: it goes through an unsigned int."""

COUNT = 2
"""NR_DOMAIN_WATCHDOG_TIMERS."""
_NS = 1_000_000_000


class Watchdogs:
    """Two timers, numbered from 1.  `expired` is called in the thread that watches; `_lock` guards which are in use."""

    def __init__(self, expired: Callable[[], None]) -> None:
        self.timers = [Timer(expired) for _ in range(COUNT)]
        self._used = [False] * COUNT
        self._lock = threading.Lock()

    def set(self, number: int, timeout_s: int) -> int:
        """Start an unused one for watchdog 0, and answer its number; set another again, or stop it with a timeout of 0.

        XenError(EINVAL) for one that is not in use.
        """
        if number > COUNT:
            raise XenError(errno.EINVAL)
        with self._lock:
            if number == 0:
                if all(self._used):
                    return NO_SPACE
                index = self._used.index(False)
                self._used[index] = True
                self.timers[index].arm(timeout_s * _NS)
                return index + 1
            index = number - 1
            if not self._used[index]:
                raise XenError(errno.EINVAL)
            if timeout_s:
                self.timers[index].arm(timeout_s * _NS)
            else:
                self.timers[index].disarm()
                self._used[index] = False
            return 0

    def close(self) -> None:
        """Nobody watches the timers any more."""
        for timer in self.timers:
            timer.close()
