"""A 16550A serial port without an interrupt: drivers poll it, as they must where there is no IOAPIC.

Source: the National Semiconductor PC16550D data sheet.
"""

import threading
from collections import deque
from typing import NamedTuple

from vmm.devices.bus.ports import PortRange
from vmm.host.chardev import Sink

COM1 = 0x3F8
FIFO_BYTES = 4096
"""Input kept for a guest that does not read it; a real FIFO has 16, and its sender waits as ours does."""

_DATA, _INTERRUPT_ENABLE, _INTERRUPT_ID, _LINE_CONTROL, _MODEM_CONTROL, _LINE_STATUS, _MODEM_STATUS, _SCRATCH = range(8)
_DIVISOR_ACCESS = 1 << 7
_LOOPBACK = 1 << 4
_DATA_READY, _TRANSMITTER_EMPTY = 1, 3 << 5
_NO_INTERRUPT, _FIFOS_ENABLED = 1, 3 << 6
_CARRIER_AND_READY = 0xB0  # DCD, DSR, CTS
_MODEM_LINES = 0x0F


class UartRecord(NamedTuple):
    """A port as data."""

    registers: bytes
    divisor: bytes
    fifos: bool
    input: bytes


class Uart:
    """One port.  Registers belong to whichever vCPU accesses them; `_lock` guards the input."""

    def __init__(self, base: int, sink: Sink) -> None:
        self.ranges = (PortRange(base, base + 7),)
        self._base = base
        self._sink = sink
        self._registers = bytearray(8)
        self._divisor = bytearray(b"\x01\x00")
        self._fifos = False
        self._lock = threading.Condition()
        self._input: deque[int] = deque()
        self._closed = False

    def record(self) -> UartRecord:
        """The port as data; its vCPUs are paused."""
        with self._lock:
            return UartRecord(bytes(self._registers), bytes(self._divisor), self._fifos, bytes(self._input))

    def restore(self, record: UartRecord) -> None:
        """Go on as another did."""
        with self._lock:
            self._registers, self._divisor = bytearray(record.registers), bytearray(record.divisor)
            self._fifos, self._input = record.fifos, deque(record.input)

    def type(self, data: bytes) -> None:
        """Input for the guest; returns when there is room for more.  From any thread but a vCPU's."""
        with self._lock:
            self._lock.wait_for(lambda: len(self._input) < FIFO_BYTES or self._closed)
            self._input.extend(data)

    def close(self) -> None:
        """Let whoever waits in `type` return."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def read_port(self, port: int, size_bytes: int) -> int:
        """A register, as a byte."""
        register = port - self._base
        if register < 2 and self._registers[_LINE_CONTROL] & _DIVISOR_ACCESS:
            return self._divisor[register]
        if register == _DATA:
            return self._take()
        if register == _INTERRUPT_ID:
            return _NO_INTERRUPT | (_FIFOS_ENABLED if self._fifos else 0)
        if register == _LINE_STATUS:
            return _TRANSMITTER_EMPTY | (_DATA_READY if self._input else 0)
        if register == _MODEM_STATUS:
            control = self._registers[_MODEM_CONTROL]
            if control & _LOOPBACK:  # DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD
                return (control & 1) << 5 | (control & 2) << 3 | (control & 4) << 4 | (control & 8) << 4
            return _CARRIER_AND_READY
        return self._registers[register]

    def _take(self) -> int:
        with self._lock:
            byte = self._input.popleft() if self._input else 0
            self._lock.notify_all()
            return byte

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """A register; what is sent goes out at once."""
        register, value = port - self._base, value & 0xFF
        if register < 2 and self._registers[_LINE_CONTROL] & _DIVISOR_ACCESS:
            self._divisor[register] = value
        elif register == _DATA:
            if self._registers[_MODEM_CONTROL] & _LOOPBACK:
                with self._lock:
                    if len(self._input) < FIFO_BYTES:
                        self._input.append(value)
            else:
                self._sink.write(bytes([value]))
        elif register == _INTERRUPT_ID:  # written, it is the FIFO control register
            self._fifos = bool(value & 1)
            if value & 2:
                with self._lock:
                    self._input.clear()
        elif register == _INTERRUPT_ENABLE:
            self._registers[register] = value & 0x0F
        elif register not in (_LINE_STATUS, _MODEM_STATUS):
            self._registers[register] = value
