"""The guest's memory-mapped devices: who owns which addresses, and what the others read as."""

from typing import NamedTuple, Protocol


class MmioDevice(Protocol):
    """A device behind guest-physical addresses.  Called from vCPU threads, several at once."""

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        """What a load of `size_bytes` gives, at an offset into the device's addresses."""
        ...

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        """A store of `size_bytes`."""
        ...


class MmioRange(NamedTuple):
    """Addresses, first to one past the last, and the device that has them."""

    start: int
    end: int
    device: MmioDevice


class Mmio:
    """Address → device.  The list is replaced whole, never changed in place, so readers need no lock; writers are one at
    a time, under the lock of the bus that moves its devices."""

    def __init__(self) -> None:
        self._ranges: tuple[MmioRange, ...] = ()

    def own(self, start: int, size_bytes: int, device: MmioDevice) -> None:
        """Give a device its addresses; in front of whoever has had them."""
        self._ranges = (MmioRange(start, start + size_bytes, device), *self._ranges)

    def disown(self, device: MmioDevice, start: int) -> None:
        """Take the addresses from `start` on away from a device."""
        self._ranges = tuple(row for row in self._ranges if row.device is not device or row.start != start)

    def _find(self, address: int, size_bytes: int) -> MmioRange | None:
        for row in self._ranges:
            if row.start <= address and address + size_bytes <= row.end:
                return row
        return None

    def read(self, address: int, size_bytes: int) -> int:
        """What a load gives: all ones where nobody is, as on a real bus."""
        found = self._find(address, size_bytes)
        if found is None:
            return (1 << 8 * size_bytes) - 1
        return found.device.read_mmio(address - found.start, size_bytes)

    def write(self, address: int, size_bytes: int, value: int) -> None:
        """What a store does: nothing where nobody is."""
        found = self._find(address, size_bytes)
        if found is not None:
            found.device.write_mmio(address - found.start, size_bytes, value)
