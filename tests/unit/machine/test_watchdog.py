"""A domain's watchdogs: numbers, limits, and that one expires."""

import errno
import threading

import pytest

from vmm.host.eventloop import EventLoop
from vmm.machine.watchdog import COUNT, NO_SPACE, Watchdogs
from vmm.xenabi.values import XenError


def test_each_has_a_number_until_all_are_in_use_and_can_be_stopped() -> None:
    watchdogs = Watchdogs(lambda: None)
    assert [watchdogs.set(0, 1000) for _ in range(COUNT + 1)] == [1, 2, NO_SPACE]
    assert watchdogs.set(2, 500) == 0
    assert watchdogs.set(1, 0) == 0
    for number in (1, COUNT + 1, 0xFFFF_FFFF):
        with pytest.raises(XenError) as caught:
            watchdogs.set(number, 1000)
        assert caught.value.code == errno.EINVAL
    assert watchdogs.set(0, 1000) == 1
    watchdogs.close()


def test_one_that_is_not_set_again_expires() -> None:
    expired = threading.Event()
    watchdogs = Watchdogs(expired.set)
    loop = EventLoop("watchdogs")
    for timer in watchdogs.timers:
        loop.watch(timer.fd, timer.on_readable)
    loop.start()
    watchdogs.set(0, 0)
    assert expired.wait(10)
    loop.stop()
    watchdogs.close()
