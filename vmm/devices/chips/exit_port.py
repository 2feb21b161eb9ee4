"""The I/O port by which the guest of `--exec` says how its command ended."""

from vmm.devices.bus.ports import PortRange

EXIT_PORT = 0x501


class ExitPort:
    """Remembers the last byte written.  Written by vCPU threads, read after they have ended."""

    ranges = (PortRange(EXIT_PORT, EXIT_PORT),)

    def __init__(self) -> None:
        self.status: int | None = None

    def read_port(self, port: int, size_bytes: int) -> int:
        """Nothing to read."""
        return (1 << 8 * size_bytes) - 1

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """The guest says how its command ended."""
        self.status = value & 0xFF
