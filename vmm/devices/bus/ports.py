"""The guest's I/O ports: who owns which, and what the others read as."""

from typing import NamedTuple, Protocol


class PortDevice(Protocol):
    """A device behind I/O ports.  Called from vCPU threads, several at once."""

    def read_port(self, port: int, size_bytes: int) -> int:
        """What `in` of `size_bytes` gives."""
        ...

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """What `out` of `size_bytes` does."""
        ...


class PortRange(NamedTuple):
    """A device's ports, first and last."""

    first: int
    last: int


# Linux times the PIT to calibrate the TSC.  A PIT that reads all ones looks alive and is read 100,000 times; one that
# reads zero ends the attempt at once.  Port 0x61 is the gate of the same timer.
READS_ZERO = frozenset({0x40, 0x41, 0x42, 0x43, 0x61})


class Ports:
    """Port → device.  Filled while a domain is built, read only after."""

    def __init__(self) -> None:
        self._devices: dict[int, PortDevice] = {}

    def own(self, device: PortDevice, *ranges: PortRange) -> None:
        """Give a device its ports."""
        for first, last in ranges:
            for port in range(first, last + 1):
                self._devices[port] = device

    def read(self, port: int, size_bytes: int) -> int:
        """What `in` gives: all ones where nobody is, as on a real bus."""
        device = self._devices.get(port)
        if device is not None:
            return device.read_port(port, size_bytes)
        return 0 if port in READS_ZERO else (1 << 8 * size_bytes) - 1

    def write(self, port: int, size_bytes: int, value: int) -> None:
        """What `out` does: nothing where nobody is."""
        device = self._devices.get(port)
        if device is not None:
            device.write_port(port, size_bytes, value)
