"""Guest-physical memory: regions, RAM that comes late, limits, and its layout as data."""

import errno
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.kvm import HostMemory
from vmm.machine.memory.guest import HIGH_RAM_START, Beside, GuestMemory, MemoryFault
from vmm.machine.memory.regions import Region, RegionTable
from vmm.xenabi.constants import E820, PAGE_BYTES
from vmm.xenabi.values import Domid, Gfn, Gpa, MemmapEntry, XenError

MIB = 1 << 20


class Slots:
    """What KVM is told."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int]] = {}

    def set_memory(self, slot: int, gpa: int, size_bytes: int, address: int, flags: object) -> None:
        assert slot not in self.slots
        self.slots[slot] = gpa, size_bytes


def made(limit_bytes: int, *, full: bool = True, **words: object) -> GuestMemory:
    memory = GuestMemory(Slots(), 2, limit_bytes=limit_bytes, beside=Beside(0, 256), **words)  # type: ignore[arg-type]
    if full:
        memory.add_ram()
    return memory


def test_a_region_is_found_whatever_is_added_meanwhile() -> None:
    table, stop, missed = RegionTable(), threading.Event(), []
    host = HostMemory(PAGE_BYTES)
    table.add(Region(1 << 30, host, 0))

    def look() -> None:
        while not stop.is_set():
            if table.find(1 << 30) is None:
                missed.append(True)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(1000):
        table.add(Region(number * PAGE_BYTES, host, number + 1))
    stop.set()
    thread.join()
    assert not missed
    assert all(table.find(number * PAGE_BYTES) is not None for number in range(1000))
    table.take_all()
    assert table.find(1 << 30) is None
    host.close()


def test_memory_that_is_closed_has_nothing_and_answers_so() -> None:
    memory = made(4 * MIB)
    memory.close()
    with pytest.raises(MemoryFault):
        memory.read(0, 1)


def test_an_empty_domain_has_no_ram_until_it_is_populated() -> None:
    memory = made(16 * MIB, full=False)
    assert (memory.pages, memory.maximum_pages, memory.ram()) == (0, 4096 + 256, [])
    assert memory.populate(Gfn(100))
    memory.write(100 * PAGE_BYTES, b"here")
    assert (memory.pages, memory.read(100 * PAGE_BYTES, 4)) == (1, b"here")
    assert memory.release(Gfn(100))
    assert not memory.release(Gfn(101)), "it was never there"
    assert memory.pages == 0
    memory.close()


def test_a_domain_gets_no_more_pages_than_its_limit() -> None:
    memory = made(MIB, full=False)
    assert all(memory.populate(Gfn(gfn)) for gfn in range(512)), "and xl's slack"
    assert not memory.populate(Gfn(600))
    assert memory.release(Gfn(0))
    assert memory.populate(Gfn(600)), "above its RAM, too"
    memory.close()


def test_a_page_that_is_taken_away_or_populated_over_counts_on() -> None:
    memory = made(4 * MIB)
    memory.write(PAGE_BYTES, b"old")
    memory.remove_page(Gfn(1))
    with pytest.raises(MemoryFault):
        memory.read(PAGE_BYTES, 1)
    with pytest.raises(XenError) as caught:
        memory.remove_page(Gfn(1))
    assert (caught.value.code, memory.pages, memory.has_page(Gfn(1))) == (errno.ENOENT, 1024, False)
    assert memory.populate(Gfn(1))
    memory.write(PAGE_BYTES, b"new")
    assert memory.populate(Gfn(1))
    assert (memory.pages, memory.read(PAGE_BYTES, 3)) == (1026, b"\0\0\0")
    memory.close()


def test_a_page_moves_to_another_gfn() -> None:
    memory = made(4 * MIB)
    memory.write(PAGE_BYTES, b"here")
    memory.move_page(Gfn(1), Gfn(2))
    assert (memory.read(2 * PAGE_BYTES, 4), memory.has_page(Gfn(1)), memory.pages) == (b"here", False, 1023)
    with pytest.raises(XenError):
        memory.move_page(Gfn(1), Gfn(3))
    memory.close()


def test_a_toolstack_says_what_the_map_is() -> None:
    memory = made(16 * MIB, full=False)
    entries = [MemmapEntry(Gpa(MIB), MIB, E820.RAM), MemmapEntry(Gpa(0), MIB, E820.RESERVED)]
    memory.set_map(entries)
    assert memory.map() == sorted(entries)
    memory.close()


@settings(max_examples=30)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from("rpx"), st.integers(0, 1100) | st.integers(HIGH_RAM_START >> 12, (HIGH_RAM_START >> 12) + 600)
        ),
        max_size=30,
    ),
    full=st.booleans(),
)
def test_a_layout_that_is_given_out_and_taken_back_is_the_same(steps: list[tuple[str, int]], full: bool) -> None:
    def act(memory: GuestMemory, asked: list[tuple[str, int]]) -> list[object]:
        found: list[object] = []
        for kind, gfn in asked:
            if kind == "r":
                found.append(memory.release(Gfn(gfn)))
            elif kind == "p":
                found.append(memory.populate(Gfn(gfn)))
            else:
                memory.place_xen_page(Gfn(gfn), gfn % 2)
        return found

    first = made(4 * MIB, full=full, low_end=2 * MIB, owner=Domid(1))
    first.add_special(0xFEFF_8000, 8 * PAGE_BYTES, E820.RESERVED)
    act(first, steps)
    second = made(4 * MIB, full=False, low_end=2 * MIB, owner=Domid(1))
    second.restore(first.record())
    assert second.record() == first.record()
    assert second._vm.slots == first._vm.slots  # type: ignore[attr-defined]
    again = [(kind, gfn) for kind in "rp" for gfn in (0, 5, 600, (HIGH_RAM_START >> 12) + 3)]
    assert act(second, again) == act(first, again)
    assert second.map() == first.map()
    first.close()
    second.close()
