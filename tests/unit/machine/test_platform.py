"""The chips of a PC: memory-mapped devices, IOAPIC, clock, PS/2 controller, ACPI hardware."""

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.devices.bus.mmio import Mmio
from vmm.devices.chips.acpi_pm import POWER_BUTTON, SCI_EN, AcpiPm
from vmm.devices.chips.i8042 import COMMAND_PORT, DATA_PORT, I8042, KEYBOARD_LINE, MOUSE_LINE
from vmm.devices.chips.ioapic import IoApic, message
from vmm.devices.chips.rtc import CENTURY, Rtc
from vmm.devices.console.hypervisor import INPUT_BYTES, HypervisorConsole

POWER_PORTS = {*range(0xB000, 0xB006), *range(0xAFE0, 0xAFE4)}

# ------------------------------------------------------------------------------------------------ MMIO


class Recorder:
    """A device that remembers what it was asked."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        return offset

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        self.writes.append((offset, size_bytes, value))


def test_a_device_answers_at_its_addresses_and_nobody_elsewhere() -> None:
    mmio, device = Mmio(), Recorder()
    mmio.own(0x1000, 0x100, device)
    mmio.write(0x1010, 4, 7)
    assert (mmio.read(0x10FC, 4), device.writes) == (0xFC, [(0x10, 4, 7)])
    assert mmio.read(0x10FE, 4) == 0xFFFF_FFFF  # across its end
    assert mmio.read(0xFFF, 1) == 0xFF
    mmio.disown(device, 0x1000)
    assert mmio.read(0x1000, 2) == 0xFFFF


# ---------------------------------------------------------------------------------------------- IOAPIC


LINES = 24


class Machine:
    """What an IOAPIC sends, and where its lines lead."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.routes: dict[int, tuple[int, int] | None] = {}
        self.ioapic = IoApic(self.routes.__setitem__, self.sent.append, LINES)

    def write(self, register: int, value: int) -> None:
        self.ioapic.write_mmio(0x00, 4, register)
        self.ioapic.write_mmio(0x10, 4, value)

    def read(self, register: int) -> int:
        self.ioapic.write_mmio(0x00, 4, register)
        return self.ioapic.read_mmio(0x10, 4)

    def program(self, line: int, low: int, high: int = 0) -> None:
        self.write(0x11 + 2 * line, high)
        self.write(0x10 + 2 * line, low)


LEVEL, MASKED, LOGICAL = 1 << 15, 1 << 16, 1 << 11


def test_an_ioapic_is_the_one_that_xen_shows() -> None:
    machine = Machine()
    assert machine.read(1) == 0x0017_0011
    assert all(machine.read(0x10 + 2 * line) == MASKED for line in range(LINES))


def test_an_edge_on_an_unmasked_line_is_sent_once() -> None:
    machine = Machine()
    machine.program(8, 0x31, 2 << 24)
    assert machine.routes[8] == (0xFEE0_2000, 0x31)
    machine.ioapic.pulse_line(8)
    machine.ioapic.set_line(8, True)
    machine.ioapic.set_line(8, True)
    assert machine.sent == [8, 8]


def test_a_masked_line_sends_nothing_and_leads_nowhere() -> None:
    machine = Machine()
    machine.program(8, 0x31)
    machine.program(8, 0x31 | MASKED)
    machine.ioapic.pulse_line(8)
    assert (machine.sent, machine.routes[8]) == ([], None)


def test_a_level_comes_again_after_its_end_for_as_long_as_it_is_high() -> None:
    machine = Machine()
    machine.program(9, 0x30 | LEVEL)
    machine.ioapic.set_line(9, True)
    machine.ioapic.set_line(9, True)
    assert machine.sent == [9]
    assert machine.read(0x22) & 1 << 14  # remote IRR
    machine.ioapic.end_of_interrupt(0x30)
    assert machine.sent == [9, 9]
    machine.ioapic.set_line(9, False)
    machine.ioapic.end_of_interrupt(0x30)
    assert machine.sent == [9, 9]
    assert not machine.read(0x22) & 1 << 14


def test_a_level_that_was_masked_comes_when_it_is_unmasked() -> None:
    machine = Machine()
    machine.program(9, 0x30 | LEVEL | MASKED)
    machine.ioapic.set_line(9, True)
    assert machine.sent == []
    machine.program(9, 0x30 | LEVEL)
    assert machine.sent == [9]


def test_a_message_says_level_and_logical_destination() -> None:
    assert message(0x41 | LEVEL | LOGICAL | 5 << 56) == (0xFEE0_5004, 0xC041)


@given(st.lists(st.tuples(st.sampled_from([0, 4, 0x10, 0x40]), st.integers(0, 2**32 - 1)), max_size=40))
def test_whatever_is_written_to_an_ioapic_read_only_bits_stay(writes: list[tuple[int, int]]) -> None:
    machine = Machine()
    for offset, value in writes:
        machine.ioapic.write_mmio(offset, 4, value)
    assert machine.read(1) == 0x0017_0011
    assert not any(machine.read(0x10 + 2 * line) & 1 << 14 for line in range(LINES))


# ----------------------------------------------------------------------------------------------- clock


class Clock:
    """A clock chip at a time that stands still, its alarm and its interrupts."""

    def __init__(self, text: str = "2026-11-25 09:08:07") -> None:
        self.now = float(calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S")))
        self.armed: list[int] = []
        self.interrupts = 0
        self.chip = Rtc(self.armed.append, self.interrupt, lambda: self.now)

    def interrupt(self) -> None:
        self.interrupts += 1

    def read(self, index: int) -> int:
        self.chip.write_port(0x70, 1, index)
        return self.chip.read_port(0x71, 1)

    def write(self, index: int, value: int) -> None:
        self.chip.write_port(0x70, 1, index)
        self.chip.write_port(0x71, 1, value)

    def time(self) -> str:
        century, year, month, day = (self.read(at) for at in (CENTURY, 9, 8, 7))
        return f"{century:02x}{year:02x}-{month:02x}-{day:02x} {self.read(4):02x}:{self.read(2):02x}:{self.read(0):02x}"


def test_the_clock_shows_utc_in_bcd() -> None:
    clock = Clock()
    assert clock.time() == "2026-11-25 09:08:07"
    assert clock.read(6) == 4  # a Wednesday; Sunday is 1
    assert (clock.read(10) & 0x80, clock.read(13)) == (0, 0x80)


def test_the_clock_shows_binary_and_twelve_hours_where_it_is_told_so() -> None:
    clock = Clock("2026-11-25 23:08:07")
    clock.write(11, 1 << 2)
    assert clock.read(4) == 0x80 | 11


def test_a_clock_that_was_set_goes_on_from_there() -> None:
    clock = Clock()
    clock.write(11, 0x82)  # it stands
    for index, value in ((0, 0x59), (2, 0x59), (4, 0x23), (7, 0x31), (8, 0x12), (9, 0x99), (CENTURY, 0x19)):
        clock.write(index, value)
    clock.write(11, 0x02)
    assert clock.time() == "1999-12-31 23:59:59"
    clock.now += 1
    assert clock.time() == "2000-01-01 00:00:00"


def test_an_alarm_interrupts_at_its_second_alone() -> None:
    clock = Clock()
    for index, value in ((1, 0x09), (3, 0xFF), (5, 0xC0)):
        clock.write(index, value)
    clock.write(11, 0x22)
    assert clock.armed[-1] > 0
    for _ in range(3):
        clock.now += 1
        clock.chip.tick()
    assert clock.interrupts == 1
    assert clock.read(12) == 0x80 | 0x20 | 0x10
    assert clock.read(12) == 0
    clock.write(11, 0x02)
    assert clock.armed[-1] == 0


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=60))
def test_whatever_is_written_to_the_clock_it_can_be_read(writes: list[tuple[int, int]]) -> None:
    clock = Clock()
    for index, value in writes:
        clock.write(index, value)
        clock.chip.tick()
    assert all(0 <= clock.read(index) <= 255 for index in range(128))


# --------------------------------------------------------------------------------------- PS/2 controller


class Keyboard:
    """A controller, the lines that it raised, and whether it has reset the machine."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.resets = 0
        self.chip = I8042(self.lines.append, self.reset)

    def reset(self) -> None:
        self.resets += 1

    def command(self, value: int, *data: int) -> None:
        self.chip.write_port(COMMAND_PORT, 1, value)
        for each in data:
            self.chip.write_port(DATA_PORT, 1, each)

    def answers(self) -> bytes:
        found = b""
        while self.chip.read_port(COMMAND_PORT, 1) & 1:
            found += bytes([self.chip.read_port(DATA_PORT, 1)])
        return found


def test_a_controller_passes_its_tests_and_keeps_its_command_byte() -> None:
    keyboard = Keyboard()
    keyboard.command(0xAA)
    keyboard.command(0xAB)
    keyboard.command(0x60, 0x47)
    keyboard.command(0x20)
    assert keyboard.answers() == b"\x55\x00\x47"


def test_a_keyboard_and_a_mouse_say_who_they_are_and_interrupt() -> None:
    keyboard = Keyboard()
    keyboard.command(0x60, 0x03)
    keyboard.chip.write_port(DATA_PORT, 1, 0xF2)
    assert (keyboard.answers(), keyboard.lines) == (b"\xfa\xab\x83", [KEYBOARD_LINE] * 3)
    keyboard.command(0xD4, 0xF2)
    assert keyboard.chip.read_port(COMMAND_PORT, 1) & 0x21 == 0x21
    assert (keyboard.answers(), keyboard.lines[3:]) == (b"\xfa\x00", [MOUSE_LINE] * 2)


def test_the_reset_line_resets() -> None:
    keyboard = Keyboard()
    keyboard.command(0xFE)
    assert keyboard.resets == 1


@given(st.lists(st.tuples(st.sampled_from([DATA_PORT, COMMAND_PORT]), st.integers(0, 255)), max_size=200))
def test_a_controller_that_nobody_reads_keeps_no_more_than_its_share(writes: list[tuple[int, int]]) -> None:
    keyboard = Keyboard()
    for port, value in writes:
        keyboard.chip.write_port(port, 1, value)
    assert len(keyboard.answers()) <= 16


# ------------------------------------------------------------------------------------ ACPI and console

EVENTS, CONTROL, GPE, RESET = 0xB000, 0xB004, 0xAFE0, 0xCF9


def test_the_power_button_raises_the_sci_until_the_guest_has_seen_it() -> None:
    levels: list[bool] = []
    power = AcpiPm(EVENTS, CONTROL, GPE, RESET, {}, lambda: None, levels.append)
    assert not power.press_power_button()  # no driver has enabled it
    power.write_port(EVENTS + 2, 2, POWER_BUTTON)
    assert power.press_power_button()
    assert levels[-1]
    assert power.read_port(EVENTS, 2) == POWER_BUTTON
    power.write_port(EVENTS, 2, POWER_BUTTON)
    assert not levels[-1]
    assert power.read_port(EVENTS, 2) == 0


def test_sleep_and_reset_end_the_domain() -> None:
    ended: list[str] = []
    power = AcpiPm(EVENTS, CONTROL, GPE, RESET, {0: lambda: ended.append("off")}, lambda: ended.append("reset"))
    power.write_port(CONTROL, 2, 1 << 13 | 5 << 10)  # a sleep type that nobody has
    power.write_port(CONTROL, 2, 1 << 13)
    power.write_port(RESET, 1, 2)
    power.write_port(RESET, 1, 6)
    assert ended == ["off", "reset"]
    assert power.read_port(CONTROL, 2) == SCI_EN


class Sink:
    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


def test_what_is_typed_waits_for_the_guest_which_is_told() -> None:
    rings: list[None] = []
    console = HypervisorConsole(Sink(), lambda: rings.append(None))
    taken: list[bool] = []
    console.take_input(b"ls\n", lambda: taken.append(True))
    assert (taken, len(rings)) == ([True], 1)
    assert console.read(2) + console.read(100) + console.read(100) == b"ls\n"


@pytest.mark.parametrize("size", [INPUT_BYTES, INPUT_BYTES + 1, 3 * INPUT_BYTES])
def test_input_that_has_no_room_is_taken_as_the_guest_reads(size: int) -> None:
    console = HypervisorConsole(Sink(), lambda: None)
    taken: list[bool] = []
    console.take_input(b"x" * size, lambda: taken.append(True))
    assert bool(taken) == (size <= INPUT_BYTES)
    read = 0
    while data := console.read(1000):
        read += len(data)
    assert (read, taken) == (size, [True])


@pytest.mark.parametrize("size", [1, 2, 4])
@given(
    writes=st.lists(st.tuples(st.sampled_from(sorted(POWER_PORTS)), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)))
)
def test_any_part_of_a_power_register_fits_into_what_is_read(size: int, writes: list[tuple[int, int, int]]) -> None:
    power = AcpiPm(0xB000, 0xB004, 0xAFE0, 0xCF9, {}, lambda: None)
    for port, width, value in writes:
        power.write_port(port, width, value & (1 << 8 * width) - 1)
    for first, last in ((0xB000, 0xB003), (0xB004, 0xB005), (0xAFE0, 0xAFE3)):
        for port in range(first, last + 1):
            whole = power.read_port(port, size)
            assert 0 <= whole < 1 << 8 * size
            within = [power.read_port(at, 1) for at in range(port, min(port + size, last + 1))]
            assert list(whole.to_bytes(size, "little")) == within + [0] * (size - len(within))


@given(st.lists(st.tuples(st.integers(0, 0x7F), st.integers(0, 255)), max_size=30))
def test_a_clock_that_is_given_out_and_taken_back_shows_what_it_showed(writes: list[tuple[int, int]]) -> None:
    def made() -> Rtc:
        return Rtc(lambda delay: None, lambda: None, lambda: 1_700_000_000.25)

    first, second = made(), made()
    for index, value in writes:
        first.write_port(0x70, 1, index)
        first.write_port(0x71, 1, value)
    second.restore(first.record())
    for index in range(128):
        for clock in (first, second):
            clock.write_port(0x70, 1, index)
        assert second.read_port(0x71, 1) == first.read_port(0x71, 1)


@given(
    before=st.lists(st.tuples(st.sampled_from("srl"), st.integers(0, 255), st.integers(0, 2**32 - 1)), max_size=30),
    after=st.lists(st.tuples(st.sampled_from("srl"), st.integers(0, 255), st.integers(0, 2**32 - 1)), max_size=10),
)
def test_an_ioapic_that_is_given_out_and_taken_back_does_as_before(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    def act(machine: Machine, steps: list[tuple[str, int, int]]) -> list[int]:
        found = []
        for kind, number, value in steps:
            if kind == "s":
                machine.write(number, value)
            elif kind == "r":
                machine.ioapic.write_mmio(0x00, 4, number)
                found.append(machine.ioapic.read_mmio(0x10, 4))
            else:
                machine.ioapic.set_line(number % LINES, bool(value & 1))
        return found

    first, second = Machine(), Machine()
    act(first, before)
    second.ioapic.restore(first.ioapic.record())
    assert {line: to for line, to in second.routes.items() if to} == {line: to for line, to in first.routes.items() if to}
    first.sent.clear()
    assert (act(second, after), second.sent) == (act(first, after), first.sent)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255)), max_size=30))
def test_a_keyboard_controller_that_is_given_out_and_taken_back_answers_as_before(writes: list[tuple[bool, int]]) -> None:
    first, second = (I8042(lambda line: None, lambda: None) for _ in range(2))
    for command, value in writes:
        first.write_port(COMMAND_PORT if command else DATA_PORT, 1, value)
    second.restore(first.record())
    for _ in range(40):
        for port in (COMMAND_PORT, DATA_PORT):
            assert second.read_port(port, 1) == first.read_port(port, 1)
