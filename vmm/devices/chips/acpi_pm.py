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
        self._status_port, self._enable_port = event_port, event_port + 2
        self._control_port = control_port
        self._reset_port = reset_port
        self._sleep_types = sleep_types
        self._reset = reset
        self._set_sci = set_sci
        self._lock = threading.Lock()
        self._status = self._enabled = 0
        self._gpe_enable = {gpe_port + 2: 0, gpe_port + 3: 0}
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
        """Events as they are pending and enabled; SCI is always on; general-purpose events never come."""
        if port == self._control_port:
            return self._control
        if port == self._status_port:
            return self._status | (self._enabled << 16 if size_bytes == 4 else 0)
        if port == self._enable_port:
            return self._enabled
        return self._gpe_enable.get(port, 0)

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """SLP_EN with a known sleep type ends the domain; a one clears a pending event."""
        if port == self._control_port:
            self._control = value & ~SLP_EN | SCI_EN
            action = self._sleep_types.get(value >> SLP_TYPE_SHIFT & SLP_TYPE_MASK)
            if value & SLP_EN and action is not None:
                action()
        elif port == self._reset_port:
            if value & RESET_CPU:
                self._reset()
        elif port in (self._status_port, self._enable_port):
            with self._lock:
                if port == self._status_port:
                    self._status &= ~value
                    if size_bytes == 4:
                        self._enabled = value >> 16 & 0xFFFF
                else:
                    self._enabled = value & 0xFFFF
                self._update_sci()
        elif port in self._gpe_enable:
            self._gpe_enable[port] = value & 0xFF
