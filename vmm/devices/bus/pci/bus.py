"""PCI bus 0 behind a host bridge: the two ways to its configuration space, and where its BARs are.

Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 (ports); PCI Firmware Specification 3.3, 4.1 (memory-mapped).
"""

import threading

from vmm.devices.bus.mmio import Mmio
from vmm.devices.bus.pci.function import CONFIG_BYTES, Function, PciIdentity
from vmm.devices.bus.ports import PortRange

ADDRESS_PORT, DATA_PORT = 0xCF8, 0xCFC
_ENABLE = 1 << 31
HOST_BRIDGE = PciIdentity(0x8086, 0x29C0, 0x060000)
"""Intel's Q35 memory controller, which every Linux knows."""
SLOTS = 32


class NoSlot(Exception):
    """The bus is full."""


class PciBus:
    """Owns which function is in which slot, and where BARs are; `_lock` guards all of it.

    `window` is the space for BARs; its end is handed out first, as firmware would.
    """

    ranges = (PortRange(ADDRESS_PORT, DATA_PORT + 3),)

    def __init__(self, mmio: Mmio, window: tuple[int, int]) -> None:
        self._mmio = mmio
        self._window = window
        self._top = window[1]
        self._lock = threading.Lock()
        self._address = 0
        self._functions: dict[int, Function] = {0: Function(HOST_BRIDGE)}
        self._placed: dict[int, dict[int, int]] = {0: {}}
        self._firmwares: dict[int, dict[int, int]] = {}
        """Where each slot's BARs were put at first."""
        self._spare: dict[int, list[int]] = {}
        """Addresses that BARs of a size have had whose function is gone."""

    def plug(self, function: Function) -> int:
        """Put a function into the first free slot, its BARs into the window: the slot.  NoSlot.

        A guest that runs finds it when it looks again (Linux: /sys/bus/pci/rescan).
        """
        with self._lock:
            slot = next((number for number in range(SLOTS) if number not in self._functions), None)
            if slot is None:
                raise NoSlot
            for number, bar in function.bars.items():
                spare = self._spare.get(bar.size_bytes)
                if spare:
                    function.set_bar(number, spare.pop())
                    continue
                self._top = (self._top - bar.size_bytes) & -bar.size_bytes
                function.set_bar(number, self._top)
            self._firmwares[slot] = function.places(on=True)
            function.enable_memory()
            self._functions[slot], self._placed[slot] = function, {}
            self._place(slot, function)
            return slot

    def unplug(self, function: Function) -> None:
        """Take a function away: its slot is empty from now on."""
        with self._lock:
            slot = next((number for number, known in self._functions.items() if known is function), None)
            if slot is None:
                return
            for number, address in self._placed.pop(slot).items():
                self._mmio.disown(function.bars[number].device, address)
            for number, address in self._firmwares.pop(slot).items():
                self._spare.setdefault(function.bars[number].size_bytes, []).append(address)
            del self._functions[slot]

    def has(self, bus: int, devfn: int) -> bool:
        """Whether a function is there."""
        with self._lock:
            return bus == 0 and not devfn & 7 and devfn >> 3 in self._functions

    def _place(self, slot: int, function: Function) -> None:
        before, after = self._placed[slot], function.places()
        if before == after:
            return
        for number, address in before.items():
            if after.get(number) != address:
                self._mmio.disown(function.bars[number].device, address)
        for number, address in after.items():
            if before.get(number) != address and self._fits(address, function.bars[number].size_bytes):
                self._mmio.own(address, function.bars[number].size_bytes, function.bars[number].device)
        self._placed[slot] = after
        function.moved({number: address for number, address in after.items() if self._fits(address, 0)})

    def _fits(self, address: int, size_bytes: int) -> bool:
        # A guest that moves a BAR over RAM or another device gets nothing there.
        return self._window[0] <= address and address + size_bytes <= self._window[1]

    # -------------------------------------------------------------------------------------- access

    def _read(self, bus: int, devfn: int, offset: int, size_bytes: int) -> int:
        with self._lock:
            function = self._functions.get(devfn >> 3) if bus == 0 and not devfn & 7 else None
            if function is None or offset + size_bytes > CONFIG_BYTES:
                return (1 << 8 * size_bytes) - 1
            return function.read_config(offset, size_bytes)

    def _write(self, bus: int, devfn: int, offset: int, size_bytes: int, value: int) -> None:
        with self._lock:
            slot = devfn >> 3
            function = self._functions.get(slot) if bus == 0 and not devfn & 7 else None
            if function is not None and offset + size_bytes <= CONFIG_BYTES:
                function.write_config(offset, size_bytes, value & (1 << 8 * size_bytes) - 1)
                self._place(slot, function)

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        """Configuration space, memory-mapped: bus, device, function and register are in the offset."""
        return self._read(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size_bytes)

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        """A store to memory-mapped configuration space."""
        self._write(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size_bytes, value)

    def _target(self, port: int) -> tuple[int, int, int] | None:
        address = self._address
        if not address & _ENABLE or port < DATA_PORT:
            return None
        return address >> 16 & 0xFF, address >> 8 & 0xFF, (address & 0xFC) + port - DATA_PORT

    def read_port(self, port: int, size_bytes: int) -> int:
        """The address port, or the register that it names."""
        if port == ADDRESS_PORT and size_bytes == 4:
            return self._address
        target = self._target(port)
        return (1 << 8 * size_bytes) - 1 if target is None else self._read(*target, size_bytes)

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """Choose a register, or write to the one that is chosen."""
        if port == ADDRESS_PORT and size_bytes == 4:
            self._address = value
            return
        target = self._target(port)
        if target is not None:
            self._write(*target, size_bytes, value)
