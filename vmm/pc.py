"""What a domain has of a PC beside LAPICs: an IOAPIC, a clock, a PS/2 controller, a PCI bus, and a power button."""

from collections.abc import Callable

from vmm.boot import acpi
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.i8042 import I8042
from vmm.devices.ioapic import IoApic
from vmm.devices.mmio import Mmio
from vmm.devices.ports import Ports
from vmm.devices.rtc import RTC_LINE, Rtc
from vmm.gsis import Gsis
from vmm.kvm import MsiRoute
from vmm.kvm.timer import Timer


class Pc:
    """The chips of one domain, wired to each other and to its ports and addresses."""

    def __init__(self, gsis: Gsis, ports: Ports, mmio: Mmio, reset: Callable[[], None]) -> None:
        def route(line: int, message: tuple[int, int] | None) -> None:
            gsis.route(line, None if message is None else MsiRoute(*message))

        self.ioapic = IoApic(route, gsis.pulse)
        mmio.own(acpi.IOAPIC_ADDRESS, acpi.IOAPIC_BYTES, self.ioapic)
        self._clock_timer = Timer(lambda: self._clock.tick())
        self._clock = Rtc(self._arm, lambda: self.ioapic.pulse_line(RTC_LINE))
        ports.own(self._clock, *self._clock.ranges)
        keyboard = I8042(self.ioapic.pulse_line, reset)
        ports.own(keyboard, *keyboard.ranges)

    @property
    def timers(self) -> tuple[Timer, ...]:
        """What is to be watched."""
        return (self._clock_timer,)

    def _arm(self, delay_ns: int) -> None:
        if delay_ns:
            self._clock_timer.arm(delay_ns)
        else:
            self._clock_timer.disarm()

    def set_sci(self, high: bool) -> None:
        """The interrupt of the ACPI hardware."""
        self.ioapic.set_line(acpi.SCI, high)

    def close(self) -> None:
        """Its timer's descriptor goes; nobody watches it any more."""
        self._clock_timer.close()


def power_management(
    shut_down: Callable[[], None], reset: Callable[[], None], set_sci: Callable[[bool], None] | None
) -> AcpiPm:
    """The ACPI hardware at the ports that the tables name."""
    return AcpiPm(
        acpi.PM1A_EVENT_PORT,
        acpi.PM1A_CONTROL_PORT,
        acpi.GPE0_PORT,
        acpi.RESET_PORT,
        {acpi.S5_SLEEP_TYPE: shut_down},
        reset,
        set_sci,
    )
