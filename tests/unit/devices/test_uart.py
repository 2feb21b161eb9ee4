"""The 16550."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.devices.test_console import Collected
from vmm.devices.chips.uart import COM1, FIFO_BYTES, Uart

DATA, INTERRUPT_ID, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH = (
    COM1 + offset for offset in (0, 2, 3, 4, 5, 6, 7)
)


def test_sent_bytes_go_out_and_the_transmitter_is_always_empty() -> None:
    sink = Collected()
    uart = Uart(COM1, sink)
    for byte in b"hello":
        assert uart.read_port(LINE_STATUS, 1) & 0x60 == 0x60
        uart.write_port(DATA, 1, byte)
    assert sink.data == b"hello"


def test_typed_bytes_are_read_in_order() -> None:
    uart = Uart(COM1, Collected())
    uart.type(b"ab")
    got = b""
    while uart.read_port(LINE_STATUS, 1) & 1:
        got += bytes([uart.read_port(DATA, 1)])
    assert got == b"ab"


def test_a_driver_finds_a_16550a() -> None:
    uart, sink = Uart(COM1, Collected()), Collected()
    uart.write_port(SCRATCH, 1, 0x5A)
    assert uart.read_port(SCRATCH, 1) == 0x5A
    uart.write_port(INTERRUPT_ID, 1, 1)
    assert uart.read_port(INTERRUPT_ID, 1) >> 6 == 3
    uart.write_port(MODEM_CONTROL, 1, 0x1A)  # Linux: loop OUT2 and RTS back
    assert uart.read_port(MODEM_STATUS, 1) & 0xF0 == 0x90
    uart.write_port(DATA, 1, 0x41)
    assert uart.read_port(DATA, 1) == 0x41
    assert not sink.data


def test_divisor_hides_data_and_interrupt_registers() -> None:
    sink = Collected()
    uart = Uart(COM1, sink)
    uart.write_port(LINE_CONTROL, 1, 0x80)
    uart.write_port(DATA, 1, 12)
    assert uart.read_port(DATA, 1) == 12
    assert not sink.data


def test_typing_waits_for_a_guest_that_does_not_read() -> None:
    uart = Uart(COM1, Collected())
    uart.type(bytes(FIFO_BYTES))
    thread = threading.Thread(target=uart.type, args=[b"x"], daemon=True)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    uart.read_port(DATA, 1)
    thread.join(5)
    assert not thread.is_alive()


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))))
def test_any_accesses_do_no_harm(accesses: list[tuple[int, bool, int, int]]) -> None:
    uart = Uart(COM1, Collected())
    for register, write, value, size in accesses:
        if write:
            uart.write_port(COM1 + register, size, value)
        else:
            assert 0 <= uart.read_port(COM1 + register, size) <= 0xFF
