"""What a domain has of a PC beside LAPICs: an IOAPIC, a clock, a PS/2 controller, a PCI bus, and a power button."""

from collections.abc import Callable

from vmm.boot import acpi
from vmm.devices.bus.mmio import Mmio
from vmm.devices.bus.pci.bus import SLOTS, NoSlot, PciBus
from vmm.devices.bus.ports import Ports
from vmm.devices.chips.i8042 import I8042
from vmm.devices.chips.ioapic import IoApic
from vmm.devices.chips.rtc import RTC_LINE, Rtc
from vmm.devices.virtio.pci import VirtioDevice, VirtioPci, Wiring
from vmm.errors import UsageError
from vmm.kvm import MsiRoute, VmFd
from vmm.kvm.timer import Timer
from vmm.machine.irq_routing import Gsis
from vmm.machine.memory.guest import GuestMemory, MemoryFault


class Pc:
    """The chips of one domain, wired to each other and to its ports and addresses."""

    def __init__(
        self, vm: VmFd, gsis: Gsis, memory: GuestMemory, ports: Ports, mmio: Mmio, reset: Callable[[], None]
    ) -> None:
        def route(line: int, message: tuple[int, int] | None) -> None:
            gsis.route(line, None if message is None else MsiRoute(*message))

        self.ioapic = IoApic(route, gsis.pulse, acpi.IOAPIC_LINES)
        mmio.own(acpi.IOAPIC_ADDRESS, acpi.IOAPIC_BYTES, self.ioapic)
        self._clock_timer = Timer(lambda: self._clock.tick())
        self._clock = Rtc(self._arm, lambda: self.ioapic.pulse_line(RTC_LINE))
        ports.own(self._clock, *self._clock.ranges)
        keyboard = I8042(self.ioapic.pulse_line, reset)
        ports.own(keyboard, *keyboard.ranges)
        for start, size in (
            (acpi.ECAM_BASE, acpi.ECAM_BYTES),
            (acpi.IOAPIC_ADDRESS, acpi.IOAPIC_BYTES),
            (acpi.PCI_WINDOW[0], acpi.PCI_WINDOW[1] - acpi.PCI_WINDOW[0]),
        ):
            memory.reserve(start, size, shown=start == acpi.ECAM_BASE)
        self._bus = PciBus(mmio, acpi.PCI_WINDOW)
        ports.own(self._bus, *self._bus.ranges)
        mmio.own(acpi.ECAM_BASE, acpi.ECAM_BYTES, self._bus)
        self._functions: list[VirtioPci] = []

        def notify_by(address: int, fd: int, wanted: bool) -> None:
            vm.ioeventfd(fd, address, 2, assign=wanted)

        self._wiring = Wiring(memory, MemoryFault, lambda: _Message(gsis), notify_by)

    @property
    def timers(self) -> tuple[Timer, ...]:
        """What is to be watched."""
        return (self._clock_timer,)

    def _arm(self, delay_ns: int) -> None:
        if delay_ns:
            self._clock_timer.arm(delay_ns)
        else:
            self._clock_timer.disarm()

    def plug(self, device: VirtioDevice) -> None:
        """Put a virtio device into the next slot; before the domain starts.  PyvmmError where there is none."""
        function = VirtioPci(device, self._wiring)
        try:
            self._bus.plug(function)
        except NoSlot:
            raise UsageError(f"a dom0 has room for {SLOTS - 1} disks and network cards") from None
        self._functions.append(function)

    def has(self, bus: int, devfn: int) -> bool:
        """Whether a PCI function is there."""
        return self._bus.has(bus, devfn)

    def stop(self) -> None:
        """Let the devices finish what they were given, and let their files and networks go."""
        while self._functions:
            self._functions.pop().close()

    def set_sci(self, high: bool) -> None:
        """The interrupt of the ACPI hardware."""
        self.ioapic.set_line(acpi.SCI, high)

    def close(self) -> None:
        """Its timer's descriptor goes; nobody watches it any more."""
        self._clock_timer.close()


class _Message:
    """A message of a PCI device's, by a number of its own."""

    def __init__(self, gsis: Gsis) -> None:
        self._gsis = gsis
        self._gsi = gsis.allocate()

    def route(self, message: tuple[int, int] | None) -> None:
        self._gsis.route(self._gsi, None if message is None else MsiRoute(*message))

    def send(self) -> None:
        self._gsis.pulse(self._gsi)
