"""The back end's side of a ring."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Bytes
from tests.unit.frontend import Ring
from vmm.devices.ring.shared import SharedRing
from vmm.xenabi.byte_ring import RingBroken

ENTRY = 112


def pair(pages: int = 1) -> tuple[Ring, SharedRing]:
    memory = [Bytes() for _ in range(pages)]
    views = [memoryview(page.data) for page in memory]
    return Ring(views[0], ENTRY), SharedRing(memory[0], views, ENTRY)


def test_requests_are_taken_once_and_in_order() -> None:
    front, back = pair()
    assert back.entries == 32
    for number in range(32):
        front.put(bytes([number]) * ENTRY)
    assert [request[0] for request in back.take()] == list(range(32))
    assert back.take() == []


def test_front_end_is_told_only_when_it_asked_to_be() -> None:
    front, back = pair()
    for _ in range(3):
        front.put(b"x")
    back.take()
    back.respond(b"one")
    assert back.push()
    back.respond(b"two")
    assert not back.push()  # it asked for the first only
    assert not back.push()
    assert [response[:3] for response in front.responses(16)] == [b"one", b"two"]
    back.respond(b"end")
    assert back.push()


def test_rearm_notices_what_came_meanwhile() -> None:
    front, back = pair()
    assert not back.rearm()
    assert front.indices[1] == 1
    front.put(b"x")
    assert back.rearm()
    assert not back.rearm(2)
    assert front.indices[1] == 2


def test_entries_may_cross_the_pages_of_a_larger_ring() -> None:
    memory = [Bytes() for _ in range(4)]
    views = [memoryview(page.data) for page in memory]
    back = SharedRing(memory[0], views, ENTRY)
    assert back.entries == 128
    back.take()
    for number in range(128):
        back.respond(bytes([number]) * ENTRY)
    back.push()
    whole = b"".join(page.data for page in memory)
    assert [whole[64 + n * ENTRY] for n in range(128)] == list(range(128))
    views[0][:16] = struct.pack("<4I", 128, 1, 0, 1)
    assert list(SharedRing(memory[0], views, ENTRY).take()) == [bytes([n]) * ENTRY for n in range(128)]


def test_a_front_end_that_used_the_ring_before_goes_on_where_it_was() -> None:
    memory = Bytes()
    view = memoryview(memory.data)
    view[:16].cast("I")[0] = view[:16].cast("I")[2] = 0xFFFF_FFFF
    back = SharedRing(memory, [view], ENTRY)
    assert back.take() == []
    view[:16].cast("I")[0] = 1
    assert len(back.take()) == 2


@pytest.mark.parametrize("ahead", [33, 0x8000_0000, 0xFFFF_FFFF])
def test_an_index_that_cannot_be_breaks_the_ring(ahead: int) -> None:
    front, back = pair()
    front.indices[0] = ahead
    with pytest.raises(RingBroken):
        back.take()
    with pytest.raises(RingBroken):
        back.peek()


def test_requests_beyond_those_unanswered_break_the_ring() -> None:
    front, back = pair()
    front.indices[0] = 32
    assert len(back.take()) == 32
    front.indices[0] = 33
    with pytest.raises(RingBroken):
        back.take()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 0xFFFF_FFFF)), max_size=30))
def test_no_index_makes_more_requests_than_the_ring_has(steps: list[tuple[int, int]]) -> None:
    front, back = pair()
    for which, value in steps:
        front.indices[which] = value
        try:
            for request in back.take():
                back.respond(request)
        except RingBroken:
            return
        back.push()
        back.rearm()


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=30), st.integers(1, 3))
def test_responses_of_any_size_are_where_the_front_end_looks(steps: list[tuple[int, bool]], pages: int) -> None:
    memory = [Bytes() for _ in range(pages)]
    views = [memoryview(page.data) for page in memory]
    front, back = Ring(views[0], ENTRY), SharedRing(memory[0], views, ENTRY)
    number = 0
    for count, whole in steps:
        sent = []
        for _ in range(min(count, back.entries)):
            number += 1
            sent.append(struct.pack("<I", number) * (ENTRY // 4 if whole else 2))
            front.indices[0] = (front.indices[0] + 1) & 0xFFFF_FFFF
        assert len(back.take()) == len(sent)
        if whole:
            back.respond_all(b"".join(sent))
        else:
            for response in sent:
                back.respond(response)
        back.push()
        ring = b"".join(page.data for page in memory)
        for index, response in enumerate(sent, front.indices[2] - len(sent)):
            at = 64 + index % back.entries * ENTRY
            assert ring[at : at + len(response)] == response
