"""A thread that waits for descriptors and runs callbacks: the owner of a device's or timer's state."""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

from vmm.host import log

Callback = Callable[[], None]


class EventLoop:
    """One thread with an epoll set.  All callbacks run in it; its methods may be called from any thread.

    `_lock` guards the way in: `_open`, and with it the descriptors.
    """

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._readers: dict[int, Callback] = {}
        self._doorbells: list[int] = []
        self._posted: deque[Callback] = deque()
        self._running = self._open = True
        self._last = _nothing
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Let the thread run."""
        self._thread.start()

    def post(self, callback: Callback) -> None:
        """Run a callback soon; not at all once the loop has ended."""
        with self._lock:
            if self._open:
                self._posted.append(callback)
                os.eventfd_write(self._wake, 1)

    def doorbell(self, answer: Callback) -> "Doorbell":
        """A new way to have a callback run here; its descriptor is the loop's."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._doorbells.append(fd)

        def run() -> None:
            os.eventfd_read(fd)
            answer()

        self.watch(fd, run)
        return Doorbell(self, fd)

    def signal(self, fd: int) -> None:
        """Ring a doorbell of this loop's; not at all once it or the loop has ended."""
        with self._lock:
            if self._open and fd in self._doorbells:
                os.eventfd_write(fd, 1)

    def remove(self, fd: int) -> None:
        """End a doorbell; in the loop's thread, once nobody else signals its descriptor."""
        with self._lock:
            if self._open and fd in self._doorbells:
                self._doorbells.remove(fd)
                self.unwatch(fd)
                os.close(fd)

    def watch(self, fd: int, callback: Callback) -> None:
        """Run a callback whenever `fd` can be read."""
        self._readers[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def wait_for_room(self, fd: int, wanted: bool) -> None:
        """Run a watched descriptor's callback when it can be written, instead of when it can be read; or that again."""
        if fd in self._readers:
            self._epoll.modify(fd, select.EPOLLOUT if wanted else select.EPOLLIN)

    def watch_room(self, fd: int, wanted: bool) -> None:
        """Run a watched descriptor's callback also when it can be written; or only when it can be read again."""
        if fd in self._readers:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def unwatch(self, fd: int) -> None:
        """Run nothing more for a descriptor."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _run(self) -> None:
        while self._running:
            for fd, _ in self._epoll.poll():
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    while self._posted:
                        self._call(self._posted.popleft())
                elif callback := self._readers.get(fd):
                    self._call(callback)
        self._call(self._last)
        self._release()

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:  # a fault of pyvmm's: say so, and let the other devices go on
            log.get(__name__).exception("callback failed", thread=self._thread.name, error=str(error))

    def stop(self) -> None:
        """Run what has been posted, end the thread, and release the descriptors."""
        self.end(_nothing)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def end(self, last: Callback) -> None:
        """Run what has been posted and then `last` in the loop's thread, and end that; without waiting for it."""
        if self._thread.ident is not None:
            self.post(lambda: self._finish(last))
        elif self._running:
            last()
            self._release()

    def _finish(self, last: Callback) -> None:
        if self._running:
            self._running = False
            self._last = last

    def _release(self) -> None:
        with self._lock:  # whoever posts now is too late, and must not write to a descriptor that is another's
            self._running = self._open = False
            self._epoll.close()
            for fd in (self._wake, *self._doorbells):
                os.close(fd)


def _nothing() -> None:
    pass


class Doorbell:
    """Runs a callback in a loop once for any number of rings that came before it ran.  `ring` from any thread.

    Whoever signals the eventfd `fd` rings it, too: KVM can.
    """

    def __init__(self, loop: EventLoop, fd: int) -> None:
        self._loop = loop
        self.fd = fd

    def ring(self) -> None:
        """Have the answer run soon; from any thread."""
        self._loop.signal(self.fd)

    def close(self) -> None:
        """Let go of the descriptor; in the loop's thread."""
        self._loop.remove(self.fd)
