"""MSI-X: a function's table of messages, which its guest fills and masks.

Source: PCI Local Bus Specification 3.0, 6.8.2.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Protocol

from vmm.devices.bus.pci.function import Bar, Function

CAPABILITY = 0x11
TABLE_BYTES = 4096
MAX_VECTORS = 128
_PENDING_AT = 0x800
_ENTRY_BYTES = 16
_MASKED = 1
_ENABLE, _MASK_ALL = 1 << 15, 1 << 14


class Line(Protocol):
    """A way to interrupt the guest by a message."""

    def route(self, message: tuple[int, int] | None) -> None:
        """The message's address and data, or None while there is none."""
        ...

    def send(self) -> None:
        """Send the message once."""
        ...

    def close(self) -> None:
        """Nobody needs it any more."""
        ...


class MsiX:
    """The table and the pending bits, behind a BAR.  `_lock` guards both."""

    def __init__(self, lines: Sequence[Line]) -> None:
        if len(lines) > MAX_VECTORS:
            raise ValueError(f"{len(lines)} MSI-X vectors, of at most {MAX_VECTORS}")
        self._lines = lines
        self._lock = threading.Lock()
        self._table = bytearray(len(lines) * _ENTRY_BYTES)
        for vector in range(len(lines)):
            self._table[vector * _ENTRY_BYTES + 12] = _MASKED
        self._pending = 0
        self._function: Function | None = None
        self._control_at = 0

    def bar(self) -> Bar:
        """Where the guest finds it."""
        return Bar(TABLE_BYTES, self)

    def describe(self, function: Function, bar: int) -> None:
        """Add the capability that points to this table behind a BAR."""
        start = function.add_capability(CAPABILITY, struct.pack("<HII", len(self._lines) - 1, bar, _PENDING_AT | bar))
        self._function, self._control_at = function, start + 2
        function.allow(start + 2, (_ENABLE | _MASK_ALL).to_bytes(2, "little"))
        function.watch(start + 3, self._update)

    def _control(self) -> int:
        return 0 if self._function is None else self._function.get(self._control_at, 2)

    def _message(self, vector: int) -> tuple[int, int] | None:
        address, data, mask = struct.unpack_from("<QII", self._table, vector * _ENTRY_BYTES)
        control = self._control()
        masked = mask & _MASKED or not control & _ENABLE or control & _MASK_ALL
        return None if masked else (address, data)

    def _update(self, vector: int | None = None) -> None:
        with self._lock:
            for each in range(len(self._lines)) if vector is None else (vector,):
                message = self._message(each)
                self._lines[each].route(message)
                if message is not None and self._pending >> each & 1:
                    self._pending &= ~(1 << each)
                    self._lines[each].send()

    def send(self, vector: int) -> None:
        """Interrupt the guest; later, where it has masked that.  From any thread."""
        with self._lock:
            if vector >= len(self._lines) or not self._control() & _ENABLE:
                return
            if self._message(vector) is None:
                self._pending |= 1 << vector
            else:
                self._lines[vector].send()

    def record(self) -> tuple[bytes, int]:
        """The table and the pending bits as data."""
        with self._lock:
            return bytes(self._table), self._pending

    def restore(self, record: tuple[bytes, int]) -> None:
        """Go on as another did; the function's configuration space is there."""
        with self._lock:
            self._table[:], self._pending = record
        self._update()

    def close(self) -> None:
        """The function is gone, and gives its lines back."""
        for line in self._lines:
            line.close()

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        """The table, or behind it the pending bits."""
        with self._lock:
            if offset >= _PENDING_AT:
                return self._pending >> 8 * (offset - _PENDING_AT) & (1 << 8 * size_bytes) - 1
            return int.from_bytes(self._table[offset : offset + size_bytes], "little")

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        """Change an entry of the table; what was pending for it may go out."""
        if offset + size_bytes > len(self._table):
            return
        with self._lock:
            self._table[offset : offset + size_bytes] = value.to_bytes(size_bytes, "little")
        self._update(offset // _ENTRY_BYTES)
