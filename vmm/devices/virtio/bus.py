"""A PCI bus as a domain's devices stand on it: virtio functions, plugged in and out."""

from vmm.devices.bus.pci.bus import SLOTS, NoSlot, PciBus
from vmm.devices.kind import Bus
from vmm.devices.virtio.pci import VirtioDevice, VirtioPci, Wiring
from vmm.errors import UsageError


class PciAttachment:
    """One function in its slot."""

    def __init__(self, bus: PciBus, function: VirtioPci) -> None:
        self._bus = bus
        self._function = function
        self.gone = False

    def detach(self, *, force: bool) -> bool:
        """Nothing tells a guest of a PCI bus without hotplug, so it has to have let go (Linux: the device's `remove`)."""
        if self._function.in_use and not force:
            return False
        self.close()
        return True

    def counters(self) -> dict[str, int]:
        """Nothing is counted here."""
        return {}

    def close(self) -> None:
        """Let the device finish what it was given, and let its file or network go."""
        if not self.gone:
            self.gone = True
            self._bus.unplug(self._function)
            self._function.close()


class VirtioBus:
    """From any thread but the domain's own."""

    kind = Bus.PCI

    def __init__(self, bus: PciBus, wiring: Wiring) -> None:
        self._bus = bus
        self._wiring = wiring
        self._attached: list[PciAttachment] = []

    def attach(self, device: VirtioDevice) -> PciAttachment:
        """Put a device into a slot.  UsageError where there is none."""
        function = VirtioPci(device, self._wiring)
        try:
            self._bus.plug(function)
        except NoSlot:
            function.close()
            raise UsageError(f"a dom0 has room for {SLOTS - 1} disks and network cards") from None
        attachment = PciAttachment(self._bus, function)
        self._attached.append(attachment)
        return attachment

    def close(self) -> None:
        """The guest does not run any more."""
        while self._attached:
            self._attached.pop().close()
