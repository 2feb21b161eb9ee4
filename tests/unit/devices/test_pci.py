"""The PCI bus: configuration space by both ways, BARs that move, MSI-X."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.bus.mmio import Mmio
from vmm.devices.bus.pci.bus import NoSlot, PciBus
from vmm.devices.bus.pci.function import Bar, Function, PciIdentity
from vmm.devices.bus.pci.msix import MsiX

WINDOW = (0xF000_0000, 0xF100_0000)
COMMAND, BAR0 = 0x04, 0x10


class Registers:
    """Something behind a BAR."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        return 0x42

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        self.written.append((offset, value))


class Bus:
    """A bus with one function of one BAR in slot 1."""

    def __init__(self) -> None:
        self.mmio = Mmio()
        self.bus = PciBus(self.mmio, WINDOW)
        self.registers = Registers()
        self.function = Function(PciIdentity(0x1234, 0x5678, 0x020000), {0: Bar(0x1000, self.registers)})
        self.slot = self.bus.plug(self.function)

    def read(self, offset: int, size: int = 4, slot: int = 1) -> int:
        return self.bus.read_mmio(slot << 15 | offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write_mmio(self.slot << 15 | offset, size, value)

    @property
    def place(self) -> int:
        return self.read(BAR0)


def test_both_ways_lead_to_the_same_configuration_space() -> None:
    bus = Bus()
    assert bus.read(0) == 0x5678_1234
    bus.bus.write_port(0xCF8, 4, 1 << 31 | 1 << 11)
    assert bus.bus.read_port(0xCFC, 4) == 0x5678_1234
    assert bus.bus.read_port(0xCFE, 2) == 0x5678
    assert bus.bus.read_port(0xCF8, 4) == 1 << 31 | 1 << 11


def test_the_host_bridge_is_in_slot_0_and_empty_slots_read_as_ones() -> None:
    bus = Bus()
    assert bus.read(0, slot=0) == 0x29C0_8086
    assert bus.read(8, slot=0) >> 8 == 0x060000
    assert bus.read(0, slot=2) == 0xFFFF_FFFF
    assert bus.bus.read_mmio(1 << 20 | 1 << 15, 4) == 0xFFFF_FFFF  # another bus
    assert bus.bus.read_mmio(1 << 15 | 1 << 12, 4) == 0xFFFF_FFFF  # another function
    assert bus.bus.has(0, 1 << 3)
    assert not bus.bus.has(0, 9)


def test_a_bar_tells_its_size_and_keeps_its_place() -> None:
    bus = Bus()
    before = bus.place
    assert WINDOW[0] <= before < WINDOW[1]
    assert bus.mmio.read(before, 1) == 0x42
    bus.write(BAR0, 0xFFFF_FFFF)
    assert bus.place == 0xFFFF_F000
    assert bus.mmio.read(before, 1) == 0xFF
    bus.write(BAR0, before)
    assert bus.mmio.read(before, 1) == 0x42


def test_memory_space_can_be_turned_off() -> None:
    bus = Bus()
    bus.write(COMMAND, 0, 2)
    assert bus.mmio.read(bus.place, 1) == 0xFF


@pytest.mark.parametrize("address", [0, 0x1000, 0xFEE0_0000, WINDOW[0] - 0x1000, WINDOW[1]])
def test_a_bar_over_ram_or_another_device_gets_nothing(address: int) -> None:
    bus = Bus()
    bus.write(BAR0, address)
    assert bus.mmio.read(address, 1) == 0xFF


def test_a_full_bus_says_so() -> None:
    bus = Bus()
    for _ in range(30):
        bus.bus.plug(Function(PciIdentity(1, 2, 3)))
    with pytest.raises(NoSlot):
        bus.bus.plug(Function(PciIdentity(1, 2, 3)))


@given(
    st.lists(
        st.tuples(st.integers(0, (256 << 20) - 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=50
    )
)
def test_whatever_is_written_identities_stay(writes: list[tuple[int, int, int]]) -> None:
    bus = Bus()
    for offset, size, value in writes:
        bus.bus.write_mmio(offset & 0x1_FFFF, size, value)
        bus.bus.read_mmio(offset, size)
    assert (bus.read(0), bus.read(0, slot=0)) == (0x5678_1234, 0x29C0_8086)


# ----------------------------------------------------------------------------------------------- MSI-X


class Line:
    def __init__(self) -> None:
        self.message: tuple[int, int] | None = None
        self.sent: list[tuple[int, int] | None] = []

    def route(self, message: tuple[int, int] | None) -> None:
        self.message = message

    def send(self) -> None:
        self.sent.append(self.message)


class WithMessages:
    """A function with two vectors."""

    def __init__(self) -> None:
        self.lines = [Line(), Line()]
        self.msix = MsiX(self.lines)
        self.function = Function(PciIdentity(1, 2, 3), {1: self.msix.bar()})
        self.msix.describe(self.function, 1)

    def enable(self, control: int = 1 << 15) -> None:
        self.function.write_config(0x42, 2, control)

    def entry(self, vector: int, address: int, data: int, mask: int = 0) -> None:
        for offset, value in ((0, address), (8, data), (12, mask)):
            self.msix.write_mmio(16 * vector + offset, 4, value)


def test_the_capability_tells_of_table_and_pending_bits() -> None:
    function = WithMessages().function
    assert function.get(0x06, 2) & 1 << 4
    assert function.get(0x34, 1) == 0x40
    assert (function.get(0x40, 1), function.get(0x42, 2)) == (0x11, 1)
    assert (function.get(0x44, 4), function.get(0x48, 4)) == (1, 0x801)


def test_a_vector_is_sent_where_its_entry_says() -> None:
    device = WithMessages()
    device.entry(1, 0xFEE0_1000, 0x55)
    device.msix.send(1)
    assert device.lines[1].sent == []  # not enabled
    device.enable()
    device.msix.send(1)
    assert device.lines[1].sent == [(0xFEE0_1000, 0x55)]


@pytest.mark.parametrize("by", ["entry", "function"])
def test_a_masked_vector_is_pending_and_sent_once_when_unmasked(by: str) -> None:
    device = WithMessages()
    device.entry(0, 0xFEE0_0000, 0x30, mask=by == "entry")
    device.enable(1 << 15 | (1 << 14 if by == "function" else 0))
    device.msix.send(0)
    device.msix.send(0)
    assert (device.lines[0].sent, device.msix.read_mmio(0x800, 4)) == ([], 1)
    device.entry(0, 0xFEE0_0000, 0x30)
    device.enable()
    assert (device.lines[0].sent, device.msix.read_mmio(0x800, 4)) == ([(0xFEE0_0000, 0x30)], 0)


@given(st.lists(st.tuples(st.integers(0, 4095), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=40))
def test_whatever_is_written_to_a_table_it_can_be_read(writes: list[tuple[int, int, int]]) -> None:
    device = WithMessages()
    device.enable()
    for offset, size, value in writes:
        device.msix.write_mmio(offset, size, value & (1 << 8 * size) - 1)
        device.msix.read_mmio(offset, size)
        device.msix.send(offset % 4)


def test_a_slot_and_its_addresses_are_free_again_once_a_function_is_unplugged() -> None:
    mmio = Mmio()
    bus = PciBus(mmio, WINDOW)
    places = set()
    for _ in range(10_000):
        function = Function(PciIdentity(1, 2, 3), {0: Bar(0x1000, Registers())})
        slot = bus.plug(function)
        places.add((slot, *function.places().values()))
        assert bus.has(0, slot << 3)
        bus.unplug(function)
        assert not bus.has(0, slot << 3)
        assert mmio.read(next(iter(function.places().values())), 4) == 0xFFFF_FFFF
    assert len(places) == 1
