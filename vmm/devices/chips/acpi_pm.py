"""The fixed ACPI hardware of a PVH domain: power off by PM1a_CNT, reset by port 0xcf9, and the power button's event.

Source: ACPI specification 6.4, section 4.8.
"""

import threading
from collections.abc import Callable

from vmm.devices.bus.ports import PortRange

SCI_EN = 1
SLP_EN = 1 << 13
SLP_TYPE_SHIFT, SLP_TYPE_MASK = 10, 7
RESET_CPU = 4
POWER_BUTTON = 1 << 8


class AcpiPm:
    """PM1a event and control blocks, GPE block 0, and the reset register.

    `_lock` guards the events; the other registers are one word each, owned by the vCPU that writes them.  `set_sci` is told
    the level of the SCI; a domain without an IOAPIC has none.
    """

    def __init__(
        self,
        event_port: int,
        control_port: int,
        gpe_port: int,
        reset_port: int,
        sleep_types: dict[int, Callable[[], None]],
        reset: Callable[[], None],
        set_sci: Callable[[bool], None] | None = None,
    ) -> None:
        self.ranges = (
            PortRange(event_port, event_port + 3),
            PortRange(control_port, control_port + 1),
            PortRange(gpe_port, gpe_port + 3),
            PortRange(reset_port, reset_port),
        )
        self._status_port, self._gpe_port = event_port, gpe_port
        self._control_port = control_port
        self._reset_port = reset_port
        self._sleep_types = sleep_types
        self._reset = reset
        self._set_sci = set_sci
        self._lock = threading.Lock()
        self._status = self._enabled = 0
        self._gpe_enabled = 0
        self._control = SCI_EN

    def press_power_button(self) -> bool:
        """Whether the guest will notice: it has a driver that has enabled the button.  From any thread."""
        with self._lock:
            if self._set_sci is None or not self._enabled & POWER_BUTTON:
                return False
            self._status |= POWER_BUTTON
            self._update_sci()
            return True

    def _update_sci(self) -> None:
        if self._set_sci is not None:
            self._set_sci(bool(self._status & self._enabled))

    def read_port(self, port: int, size_bytes: int) -> int:
        """Events as they are pending and enabled; SCI is always on; general-purpose events never come.

        Any part of a register may be read: what lies behind the register reads as 0.
        """
        if self._status_port <= port < self._status_port + 4:
            found, start = self._status | self._enabled << 16, self._status_port
        elif self._control_port <= port < self._control_port + 2:
            found, start = self._control, self._control_port
        elif self._gpe_port <= port < self._gpe_port + 4:
            found, start = self._gpe_enabled << 16, self._gpe_port
        else:
            return 0
        return found >> 8 * (port - start) & (1 << 8 * size_bytes) - 1

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """SLP_EN with a known sleep type ends the domain; a one clears a pending event.  Any part may be written."""
        if self._status_port <= port < self._status_port + 4:
            written, mask = _placed(port - self._status_port, size_bytes, value)
            with self._lock:
                self._status &= ~written & 0xFFFF
                self._enabled = self._enabled & ~(mask >> 16) & 0xFFFF | written >> 16 & 0xFFFF
                self._update_sci()
        elif self._control_port <= port < self._control_port + 2:
            written, mask = _placed(port - self._control_port, size_bytes, value)
            self._control = (self._control & ~mask | written) & 0xFFFF & ~SLP_EN | SCI_EN
            action = self._sleep_types.get(self._control >> SLP_TYPE_SHIFT & SLP_TYPE_MASK)
            if written & SLP_EN and action is not None:
                action()
        elif self._gpe_port <= port < self._gpe_port + 4:
            written, mask = _placed(port - self._gpe_port, size_bytes, value)
            self._gpe_enabled = self._gpe_enabled & ~(mask >> 16) & 0xFFFF | written >> 16 & 0xFFFF
        elif port == self._reset_port and value & RESET_CPU:
            self._reset()

    def record(self) -> tuple[int, int, int, int]:
        """The registers as data: pending events, enabled ones, the control register, enabled general-purpose events."""
        with self._lock:
            return self._status, self._enabled, self._control, self._gpe_enabled

    def restore(self, record: tuple[int, int, int, int]) -> None:
        """Go on with these."""
        with self._lock:
            self._status, self._enabled, self._control, self._gpe_enabled = record
            self._update_sci()


def _placed(offset: int, size_bytes: int, value: int) -> tuple[int, int]:
    """A write to part of a register: the value where it goes, and a mask of what it reaches."""
    mask = (1 << 8 * size_bytes) - 1
    return (value & mask) << 8 * offset, mask << 8 * offset
