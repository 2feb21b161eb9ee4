"""The console ring's back end."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Bytes
from vmm.devices.console.pv import Console, ConsoleRing

IN, OUT = 0, 1024
INDEXES = 3072


class Frontend:
    """The guest's side of a ring."""

    def __init__(self) -> None:
        self.page = Bytes()

    def indexes(self) -> tuple[int, int, int, int]:
        in_cons, in_prod, out_cons, out_prod = struct.unpack("<4I", self.page.read(INDEXES, 16))
        return in_cons, in_prod, out_cons, out_prod

    def set_indexes(self, *values: int) -> None:
        self.page.write(INDEXES, struct.pack("<4I", *values))

    def print(self, data: bytes) -> None:
        in_cons, in_prod, out_cons, out_prod = self.indexes()
        for byte in data:
            self.page.write(OUT + out_prod % 2048, bytes([byte]))
            out_prod = out_prod + 1 & 0xFFFFFFFF
        self.set_indexes(in_cons, in_prod, out_cons, out_prod)


class Collected:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


@given(st.lists(st.binary(max_size=2048), max_size=20), st.integers(0, 2**32 - 1))
def test_output_arrives_whole_and_in_order_over_every_wrap(pieces: list[bytes], start: int) -> None:
    front = Frontend()
    front.set_indexes(0, 0, start, start)
    ring = ConsoleRing(front.page)
    got = b""
    for piece in pieces:
        front.print(piece)
        got += ring.take_output()
    assert got == b"".join(pieces)


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_input_takes_what_there_is_room_for(data: bytes, start: int) -> None:
    front = Frontend()
    front.set_indexes(start, start, 0, 0)
    taken = ConsoleRing(front.page).put_input(data)
    assert taken == min(len(data), 1024)
    assert front.indexes()[1] == start + taken & 0xFFFFFFFF
    ring = front.page.read(IN, 1024)
    assert bytes(ring[(start + index) % 1024] for index in range(taken)) == data[:taken]


@given(st.tuples(*[st.integers(0, 2**32 - 1)] * 4))
def test_lying_indexes_break_the_ring_and_nothing_else(indexes: tuple[int, int, int, int]) -> None:
    front = Frontend()
    front.set_indexes(*indexes)
    ring = ConsoleRing(front.page)
    assert len(ring.take_output()) <= 2048
    assert ring.put_input(b"x" * 2000) <= 1024
    if (indexes[3] - indexes[2]) % 2**32 > 2048:
        assert ring.broken
        assert ring.take_output() == b""


def test_console_empties_the_ring_and_rings_back_once() -> None:
    front, sink, rings = Frontend(), Collected(), []
    console = Console(front.page, sink, lambda: rings.append(1))
    front.print(b"hello")
    console.on_event()
    console.on_event()
    assert sink.data == b"hello"
    assert rings == [1]


def test_what_is_in_the_ring_can_be_taken_ahead_of_what_bypasses_it() -> None:
    front, sink, notices = Frontend(), Collected(), [0]

    def notify() -> None:
        notices[0] += 1

    console = Console(front.page, sink, notify)
    front.print(b"first ")
    console.drain()
    assert (sink.data, notices) == (b"first ", [1])
    console.drain()
    front.print(b"second")
    console.on_event()
    assert (sink.data, notices) == (b"first second", [2])
