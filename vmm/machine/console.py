"""One domain's console: where its output goes, what is typed on it, and its serial port.

A thread of its own moves the bytes; `write` and `read` are called in vCPUs' threads, what types in threads of others.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from vmm.devices.chips.uart import COM1, Uart
from vmm.devices.console.pv import Console
from vmm.host.chardev import Sink
from vmm.host.eventloop import Doorbell, EventLoop
from vmm.kvm.timer import Timer
from vmm.machine.interleave import Interleaved
from vmm.xenabi.interfaces import SharedBytes

END_OF_INPUT = b"\x04"  # Ctrl-D
END_AGAIN_S = 1
INPUT_CHECK_S = 0.2


class Input(Protocol):
    """What takes what is typed."""

    def take_input(self, data: bytes, taken: Callable[[], None]) -> None:
        """`taken` is called once there is room for more."""
        ...

    def on_event(self) -> None:
        """The guest may have taken some, or printed something."""
        ...


class DomainConsole:
    """Made without anything behind it; the toolstack connects it."""

    def __init__(self, name: str, ended: Callable[[], bool]) -> None:
        self._ended = ended
        self.loop = EventLoop(f"{name}-console")
        self._input: Input | None = None
        self._uart: Uart | None = None
        self._lines: Interleaved | None = None
        self._flush: Timer | None = None
        self.write: Callable[[bytes], None] = _nowhere
        """CONSOLEIO_write."""
        self.read: Callable[[int], bytes] = _no_input
        """CONSOLEIO_read."""

    def connect_ring(self, page: SharedBytes, sink: Sink, notify_guest: Callable[[], None]) -> Doorbell:
        """The PV console is at `page`: the bell for its guest."""
        self._flush = Timer(lambda: lines.flush())
        self.loop.watch(self._flush.fd, self._flush.on_readable)
        lines = self._lines = Interleaved(sink, self._flush.arm)
        ring = Console(page, lines.of("ring"), notify_guest)
        by_hypercall = lines.of("hypercall")

        def write(data: bytes) -> None:
            ring.drain()  # what the guest has put there before comes first
            by_hypercall.write(data)

        self._input, self.write = ring, write
        return self.loop.doorbell(ring.on_event)

    def connect_hypervisor(self, sink: Sink, notify_guest: Callable[[], None]) -> None:
        """Its console is the hypervisor's own: the initial domain's."""
        from vmm.devices.console.hypervisor import HypervisorConsole  # most domains have another

        console = self._input = HypervisorConsole(sink, notify_guest)
        self.write, self.read = console.write, console.read

    def connect_serial(self, sink: Sink) -> Uart:
        """A 16550 whose output goes there."""
        self._uart = Uart(COM1, sink)
        return self._uart

    def type(self, data: bytes) -> None:
        """Type on it; returns when the guest has room for more.  From any thread but the domain's own."""
        console, taken = self._input, threading.Event()
        if console is not None and not self._ended():
            self.loop.post(lambda: console.take_input(data, taken.set))
            while not taken.wait(INPUT_CHECK_S) and not self._ended():
                pass

    def end_input(self) -> None:
        """Have every read of it find the end of the input, until the domain ends.

        A Ctrl-D ends one read, and none where it comes before the shell is there or while a command reads nothing.
        """
        pause = threading.Event()
        while not self._ended():
            self.type(END_OF_INPUT)
            for _ in range(round(END_AGAIN_S / INPUT_CHECK_S)):
                if self._ended() or pause.wait(INPUT_CHECK_S):
                    break

    def type_serial(self, data: bytes) -> None:
        """Type on the serial port, where there is one."""
        if self._uart is not None:
            self._uart.type(data)

    def stop_serial(self) -> None:
        """Nobody reads the serial port any more: a vCPU that waits to write to it goes on."""
        if self._uart is not None:
            self._uart.close()

    def stop(self) -> None:
        """Print what the guest has left in its ring, and end the thread."""
        if self._input is not None:
            self.loop.post(self._input.on_event)
        self.loop.stop()
        if self._lines is not None:
            self._lines.flush()
        if self._flush is not None:
            self._flush.close()
            self._flush = None


def _nowhere(data: bytes) -> None:
    pass


def _no_input(count: int) -> bytes:
    return b""
