"""The fixed ACPI hardware of a PVH domain: power off by PM1a_CNT, reset by port 0xcf9, and events that never come.

Source: ACPI specification 6.4, section 4.8.
"""

from collections.abc import Callable

from vmm.devices.ports import PortRange

SCI_EN = 1
SLP_EN = 1 << 13
SLP_TYPE_SHIFT, SLP_TYPE_MASK = 10, 7
RESET_CPU = 4


class AcpiPm:
    """PM1a event and control blocks, GPE block 0, and the reset register.

    Its registers are owned by the vCPU that writes them; each is one word, so no lock is needed.
    """

    def __init__(
        self,
        event_port: int,
        control_port: int,
        gpe_port: int,
        reset_port: int,
        sleep_types: dict[int, Callable[[], None]],
        reset: Callable[[], None],
    ) -> None:
        self.ranges = (
            PortRange(event_port, event_port + 3),
            PortRange(control_port, control_port + 1),
            PortRange(gpe_port, gpe_port + 3),
            PortRange(reset_port, reset_port),
        )
        self._control_port = control_port
        self._reset_port = reset_port
        self._sleep_types = sleep_types
        self._reset = reset
        self._enable = {event_port + 2: 0, gpe_port + 2: 0}
        self._control = SCI_EN

    def read_port(self, port: int, size_bytes: int) -> int:
        """Status registers have nothing to report; enable registers read as written; SCI is always on."""
        if port == self._control_port:
            return self._control
        return self._enable.get(port, 0)

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """SLP_EN with a known sleep type ends the domain."""
        if port == self._control_port:
            self._control = value & ~SLP_EN | SCI_EN
            action = self._sleep_types.get(value >> SLP_TYPE_SHIFT & SLP_TYPE_MASK)
            if value & SLP_EN and action is not None:
                action()
        elif port == self._reset_port:
            if value & RESET_CPU:
                self._reset()
        elif port in self._enable:
            self._enable[port] = value
