"""The board of one domain: its ports and addresses, and the chips that its feature flags ask for, one row each."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot import acpi
from vmm.config.features import Feature
from vmm.devices.bus.mmio import Mmio
from vmm.devices.bus.ports import Ports
from vmm.devices.chips.acpi_pm import AcpiPm
from vmm.kvm import MsiRoute, VmFd
from vmm.kvm.timer import Timer
from vmm.machine.irq_routing import Gsis
from vmm.machine.memory.guest import GuestMemory
from vmm.machine.memory.regions import MemoryFault

if TYPE_CHECKING:
    from vmm.devices.bus.pci.bus import PciBus
    from vmm.devices.chips.ioapic import IoApic
    from vmm.devices.chips.rtc import Rtc
    from vmm.devices.virtio.pci import Wiring


class Board:
    """The chips, wired to each other.  Made with its domain, by its creator's thread; each chip has its own lock."""

    def __init__(
        self,
        features: Feature,
        vm: VmFd,
        gsis: Gsis,
        memory: GuestMemory,
        power_off: Callable[[], None],
        reset: Callable[[], None],
    ) -> None:
        self.vm = vm
        self.gsis = gsis
        self.memory = memory
        self.power_off = power_off
        self.reset = reset
        self.ports, self.mmio = Ports(), Mmio()
        self.timers: list[Timer] = []
        """What is to be watched."""
        self.ioapic: IoApic | None = None
        self.rtc: Rtc | None = None
        self.pci: PciBus | None = None
        self.wiring: Wiring | None = None
        """What a virtio function needs of the board."""
        self.power: AcpiPm | None = None
        for chip in CHIPS:
            if chip.flag in features:
                chip.build(self)

    def has_pci_device(self, segment: int, bus: int, devfn: int) -> bool:
        """Whether a function is on its PCI bus."""
        return self.pci is not None and segment == 0 and self.pci.has(bus, devfn)

    def end_of_interrupt(self, vector: int) -> None:
        """A level interrupt of the IOAPIC's has been acknowledged."""
        if self.ioapic is not None:
            self.ioapic.end_of_interrupt(vector)

    def pulse_line(self, line: int) -> None:
        """Interrupt by one of the IOAPIC's lines, where there is one."""
        if self.ioapic is not None:
            self.ioapic.pulse_line(line)

    def close(self) -> None:
        """The timers' descriptors go; nobody watches them any more."""
        for timer in self.timers:
            timer.close()


def _build_ioapic(board: Board) -> None:
    from vmm.devices.chips.ioapic import IoApic  # most domains have none of these

    def route(line: int, message: tuple[int, int] | None) -> None:
        board.gsis.route(line, None if message is None else MsiRoute(*message))

    board.ioapic = IoApic(route, board.gsis.pulse, acpi.IOAPIC_LINES)
    board.mmio.own(acpi.IOAPIC_ADDRESS, acpi.IOAPIC_BYTES, board.ioapic)
    board.memory.reserve(acpi.IOAPIC_ADDRESS, acpi.IOAPIC_BYTES, shown=False)


def _build_rtc(board: Board) -> None:
    from vmm.devices.chips.rtc import RTC_LINE, Rtc

    timer = Timer(lambda: rtc.tick())

    def arm(delay_ns: int) -> None:
        if delay_ns:
            timer.arm(delay_ns)
        else:
            timer.disarm()

    rtc = board.rtc = Rtc(arm, lambda: board.pulse_line(RTC_LINE))
    board.timers.append(timer)
    board.ports.own(rtc, *rtc.ranges)


def _build_i8042(board: Board) -> None:
    from vmm.devices.chips.i8042 import I8042

    keyboard = I8042(board.pulse_line, board.reset)
    board.ports.own(keyboard, *keyboard.ranges)


def _build_pci(board: Board) -> None:
    from vmm.devices.bus.pci.bus import PciBus
    from vmm.devices.virtio.pci import Wiring

    board.memory.reserve(acpi.ECAM_BASE, acpi.ECAM_BYTES)
    board.memory.reserve(acpi.PCI_WINDOW[0], acpi.PCI_WINDOW[1] - acpi.PCI_WINDOW[0], shown=False)
    board.pci = PciBus(board.mmio, acpi.PCI_WINDOW)
    board.ports.own(board.pci, *board.pci.ranges)
    board.mmio.own(acpi.ECAM_BASE, acpi.ECAM_BYTES, board.pci)

    def notify_by(address: int, fd: int, wanted: bool) -> None:
        board.vm.ioeventfd(fd, address, 2, assign=wanted)

    board.wiring = Wiring(board.memory, MemoryFault, lambda: _Message(board.gsis), notify_by)


def _build_acpi_pm(board: Board) -> None:
    def set_sci(high: bool) -> None:
        if board.ioapic is not None:
            board.ioapic.set_line(acpi.SCI, high)

    board.power = AcpiPm(
        acpi.PM1A_EVENT_PORT,
        acpi.PM1A_CONTROL_PORT,
        acpi.GPE0_PORT,
        acpi.RESET_PORT,
        {acpi.S5_SLEEP_TYPE: board.power_off},
        board.reset,
        set_sci if board.ioapic is not None else None,
    )
    board.ports.own(board.power, *board.power.ranges)


class Chip(NamedTuple):
    """A flag, and what puts the chip that it stands for on a board."""

    flag: Feature
    build: Callable[[Board], None]


CHIPS = (
    Chip(Feature.IOAPIC, _build_ioapic),
    Chip(Feature.RTC, _build_rtc),
    Chip(Feature.I8042, _build_i8042),
    Chip(Feature.PCI, _build_pci),
    Chip(Feature.ACPI_PM, _build_acpi_pm),
)
"""In the order in which they are built: those that interrupt by the IOAPIC come after it."""


class _Message:
    """A message of a PCI device's, by a number of its own, which it gives back."""

    def __init__(self, gsis: Gsis) -> None:
        self._gsis = gsis
        self._gsi = gsis.allocate()

    def route(self, message: tuple[int, int] | None) -> None:
        self._gsis.route(self._gsi, None if message is None else MsiRoute(*message))

    def send(self) -> None:
        self._gsis.pulse(self._gsi)

    def close(self) -> None:
        self._gsis.release(self._gsi)
