"""One function on a PCI bus: its configuration space, its capabilities, and the memory behind its BARs.

Source: PCI Local Bus Specification 3.0, chapter 6.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from vmm.devices.bus.mmio import MmioDevice

CONFIG_BYTES = 4096
_VENDOR, _COMMAND, _STATUS, _CLASS, _BAR0, _SUBSYSTEM, _CAPABILITIES = 0x00, 0x04, 0x06, 0x08, 0x10, 0x2C, 0x34
_FIRST_CAPABILITY = 0x40
MEMORY_SPACE, BUS_MASTER, _INTERRUPT_DISABLE = 1 << 1, 1 << 2, 1 << 10
_HAS_CAPABILITIES = 1 << 4
BARS = 6


class PciIdentity(NamedTuple):
    """Who a function is: vendor, device, class (24 bits), revision, and the subsystem's vendor and device."""

    vendor: int
    device: int
    kind: int
    revision: int = 0
    subsystem: tuple[int, int] = (0, 0)


class Bar(NamedTuple):
    """A stretch of 32-bit memory of a function: its size, a power of two of at least 16, and who answers there."""

    size_bytes: int
    device: MmioDevice


class Function:
    """Its bus calls it, one access at a time."""

    def __init__(self, identity: PciIdentity, bars: dict[int, Bar] | None = None) -> None:
        self.bars = bars or {}
        self._bytes = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        self._watched: dict[int, Callable[[], None]] = {}
        self._last_link = _CAPABILITIES
        self._next = _FIRST_CAPABILITY
        struct.pack_into("<HH", self._bytes, _VENDOR, identity.vendor, identity.device)
        struct.pack_into("<I", self._bytes, _CLASS, identity.kind << 8 | identity.revision)
        struct.pack_into("<HH", self._bytes, _SUBSYSTEM, *identity.subsystem)
        self.allow(_COMMAND, (MEMORY_SPACE | BUS_MASTER | _INTERRUPT_DISABLE).to_bytes(2, "little"))
        self.allow(0x0C, b"\xff")  # the size of a cache line
        self.allow(0x3C, b"\xff")  # the interrupt line, which is software's own
        for number, bar in self.bars.items():
            self.allow(_BAR0 + 4 * number, (-bar.size_bytes & 0xFFFF_FFF0).to_bytes(4, "little"))

    def allow(self, offset: int, mask: bytes) -> None:
        """Let the guest write these bits."""
        self._writable[offset : offset + len(mask)] = mask

    def add_capability(self, number: int, body: bytes) -> int:
        """Append a capability, less its two bytes of header; where it starts."""
        start = self._next
        self._bytes[start : start + 2 + len(body)] = bytes([number, 0]) + body
        self._bytes[self._last_link] = start
        self._last_link = start + 1
        self._next = -(-(start + 2 + len(body)) // 4) * 4
        self._bytes[_STATUS] |= _HAS_CAPABILITIES
        return start

    def watch(self, offset: int, changed: Callable[[], None]) -> None:
        """Call a function after each write that touches this byte."""
        self._watched[offset] = changed

    def get(self, offset: int, size_bytes: int) -> int:
        """What configuration space holds."""
        return int.from_bytes(self._bytes[offset : offset + size_bytes], "little")

    def set_bar(self, number: int, address: int) -> None:
        """Where the firmware has put it."""
        struct.pack_into("<I", self._bytes, _BAR0 + 4 * number, address)

    def enable_memory(self) -> None:
        """As the firmware leaves it."""
        self._bytes[_COMMAND] |= MEMORY_SPACE

    def config_record(self) -> bytes:
        """Configuration space as data."""
        return bytes(self._bytes)

    def restore_config(self, record: bytes) -> None:
        """Have another's configuration space; the bus looks where the BARs are at the next write."""
        self._bytes[:] = record

    def read_config(self, offset: int, size_bytes: int) -> int:
        """What a read of configuration space gives."""
        return self.get(offset, size_bytes)

    def write_config(self, offset: int, size_bytes: int, value: int) -> None:
        """A write to it, of which only the writable bits stay."""
        for index, byte in enumerate(value.to_bytes(size_bytes, "little"), offset):
            mask = self._writable[index]
            self._bytes[index] = self._bytes[index] & ~mask | byte & mask
        for index in range(offset, offset + size_bytes):
            if index in self._watched:
                self._watched[index]()

    def places(self, *, on: bool = False) -> dict[int, int]:
        """Where its BARs are now, while memory space is on, or `on` says that it does not matter."""
        if not on and not self._bytes[_COMMAND] & MEMORY_SPACE:
            return {}
        return {number: self.get(_BAR0 + 4 * number, 4) & ~0xF for number in self.bars}

    def moved(self, places: dict[int, int]) -> None:
        """Its BARs are there now.  Called after each change."""
