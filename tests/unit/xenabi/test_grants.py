"""Granted pages: who may use them, and what the guest sees of it."""

import errno
import struct
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Bytes
from tests.unit.frontend import Guest
from vmm.devices.ring.granted import GrantedPages
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.grants import MAX_FRAMES, TABLE_PAGES, GrantTable
from vmm.xenabi.values import Domid, GrantRef, XenError

READING, WRITING = 8, 16
BACKEND = Domid(0)


def refused(guest: Guest, ref: int, *, write: bool = False, by: Domid = BACKEND) -> int:
    with pytest.raises(XenError) as error:
        guest.grants.acquire(GrantRef(ref), by, write=write)
    return error.value.code


def test_use_is_marked_in_the_entry_until_the_last_user_has_ended() -> None:
    guest = Guest()
    ref = GrantRef(guest.grant(5))
    assert guest.grants.acquire(ref, BACKEND, write=False) == 5
    assert guest.flags(ref) & 0x18 == READING
    guest.grants.acquire(ref, BACKEND, write=True)
    assert guest.flags(ref) & 0x18 == READING | WRITING
    guest.grants.release(ref, write=True)
    assert guest.flags(ref) & 0x18 == READING
    guest.grants.release(ref, write=False)
    assert guest.in_use() == []


def test_a_grant_for_reading_is_not_written() -> None:
    guest = Guest()
    ref = guest.grant(5, readonly=True)
    assert refused(guest, ref, write=True) == errno.EACCES
    assert guest.grants.acquire(GrantRef(ref), BACKEND, write=False) == 5


def test_a_grant_is_for_the_domain_that_it_names() -> None:
    guest = Guest()
    assert refused(guest, guest.grant(5, to=3)) == errno.EACCES
    assert guest.in_use() == []


@pytest.mark.parametrize("ref", [9, 512, 1 << 31, -1])
def test_what_was_not_granted_is_refused(ref: int) -> None:
    assert refused(Guest(), ref) == errno.EINVAL


def test_version_2_is_marked_in_the_status_frames() -> None:
    guest = Guest()
    guest.grants.set_version(2)
    guest.table.write(9 * 16, struct.pack("<HHIQ", 1, 0, 0, 1 << 33))
    ref = GrantRef(9)
    assert guest.grants.acquire(ref, BACKEND, write=True) == 1 << 33
    status = MAX_FRAMES * 4096 + 9 * 2
    assert guest.table.read(status, 2) == bytes([READING | WRITING, 0])
    guest.table.write(9 * 16, bytes(2))  # the guest ends it meanwhile, which releases nothing
    guest.grants.release(ref, write=True)
    assert guest.table.read(status, 2) == bytes(2)
    assert refused(guest, 9) == errno.EINVAL
    guest.table.write(9 * 16, struct.pack("<HHIQ", 1 | 0x100, 0, 0, 1))  # part of a page
    assert refused(guest, 9) == errno.EINVAL


def test_the_version_stays_while_grants_are_in_use() -> None:
    guest = Guest()
    ref = GrantRef(guest.grant(1))
    guest.grants.acquire(ref, BACKEND, write=False)
    with pytest.raises(XenError) as error:
        guest.grants.set_version(2)
    assert error.value.code == errno.EBUSY
    guest.grants.release(ref, write=False)
    guest.grants.set_version(2)


def test_a_granted_page_that_the_guest_has_not_is_refused_and_not_kept() -> None:
    guest = Guest(pages=4)
    pages = GrantedPages(guest.grants, guest.memory)
    with pytest.raises(XenError):
        pages.map(guest.grant(4), write=True)
    assert guest.in_use() == []


@given(
    st.lists(st.integers(0, (1 << 64) - 1), max_size=40),
    st.lists(st.tuples(st.integers(-2, 45), st.booleans()), max_size=40),
)
def test_a_hostile_table_gives_pages_or_refusals(entries: list[int], wanted: list[tuple[int, bool]]) -> None:
    guest = Guest()
    guest.table.write(0, b"".join(entry.to_bytes(8, "little") for entry in entries))
    used = []
    for ref, write in wanted:
        try:
            guest.grants.acquire(GrantRef(ref), BACKEND, write=write)
        except XenError:
            continue
        used.append((ref, write))
    for ref, write in used:
        guest.grants.release(GrantRef(ref), write=write)
    guest.grants.set_version(2)  # which it does not do while one is in use


@given(
    st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([1, 5, 1 | 1 << 16, 9, 25]), min_size=40, max_size=40),
    st.lists(st.integers(8, 50), max_size=30),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_many_grants_at_once_are_what_they_are_one_by_one(
    entries: list[int], refs: list[int], write: bool, version: int
) -> None:
    guests = Guest(), Guest()
    for guest in guests:
        guest.grants.set_version(version)
        for index, flags in enumerate(entries, 8):
            fields = (flags, 7 + index) if version == 1 else (flags, 0, 7 + index)
            guest.table.write(index * 8 * version, struct.pack("<II" if version == 1 else "<IIQ", *fields))
    at_once = guests[0].grants.acquire_all(refs, BACKEND, write=write)
    assert guests[0].grants.in_use() == sorted({ref for ref, gfn in zip(refs, at_once, strict=True) if gfn is not None})
    for ref, gfn in zip(refs, at_once, strict=True):
        try:
            assert guests[1].grants.acquire(GrantRef(ref), BACKEND, write=write) == gfn
        except XenError:
            assert gfn is None
    assert guests[0].table.data == guests[1].table.data
    held = [ref for ref, gfn in zip(refs, at_once, strict=True) if gfn is not None]
    guests[0].grants.release_all(held, write=write)
    for ref in held:
        guests[1].grants.release(GrantRef(ref), write=write)
    assert guests[0].table.data == guests[1].table.data
    assert guests[0].grants.in_use() == []


def test_pages_mapped_at_once_that_the_guest_has_not_are_left_out() -> None:
    guest = Guest(pages=16)
    pages = GrantedPages(guest.grants, guest.memory)
    refs = [guest.grant(5), guest.grant(99), guest.grant(6, readonly=True)]
    guest.memory.page(5)[:2] = b"ok"
    found = pages.map_all(refs, write=True)
    assert [None if view is None else bytes(view[:2]) for view in found] == [b"ok", None, None]
    assert guest.in_use() == refs[:1]
    pages.unmap_all(refs[:1], write=True)
    assert guest.in_use() == []


def test_a_grant_of_the_page_that_stands_for_none_is_one_like_others() -> None:
    guest = Guest()
    refs = [guest.grant(5), guest.grant(0xFFFF_FFFF), guest.grant(6, to=3), guest.grant(7)]
    assert guest.grants.acquire_all(refs, BACKEND, write=True) == [5, 0xFFFF_FFFF, None, 7]
    held = [refs[0], refs[1], refs[3]]
    assert guest.in_use() == held
    guest.grants.release_all(held, write=True)
    assert guest.in_use() == guest.grants.in_use() == []


def test_the_version_does_not_change_while_another_thread_begins_or_ends_a_use() -> None:
    class Watched(Bytes):
        beyond = 0

        def fetch_and_64(self, offset_bytes: int, bits: int) -> int:
            if offset_bytes + 8 > len(self.data):
                self.beyond += 1
                return 0
            return super().fetch_and_64(offset_bytes, bits)

    ref, table, faults = GrantRef(32000), Watched(TABLE_PAGES * PAGE_BYTES), []
    grants = GrantTable(0, table)
    grants.grow(64)
    ends = time.monotonic() + 1

    def guest() -> None:
        while time.monotonic() < ends:
            with suppress(XenError):
                grants.set_version(2)
                grants.set_version(1)
                table.write(ref * 8, struct.pack("<HHI", 1, BACKEND, 5))

    thread = threading.Thread(target=guest)
    thread.start()
    while time.monotonic() < ends:
        try:
            grants.acquire(ref, BACKEND, write=True)
            grants.release(ref, write=True)
        except XenError:
            pass
        except IndexError as error:
            faults.append(error)
    thread.join()
    assert (table.beyond, faults) == (0, [])


@given(
    version=st.sampled_from([1, 2]),
    frames=st.integers(1, 64),
    uses=st.lists(st.tuples(st.integers(8, 40), st.booleans()), max_size=12),
    later=st.lists(st.tuples(st.integers(8, 40), st.booleans()), max_size=12),
)
def test_a_table_that_is_given_out_and_taken_back_answers_as_before(
    version: int, frames: int, uses: list[tuple[int, bool]], later: list[tuple[int, bool]]
) -> None:
    pages = Bytes(TABLE_PAGES * PAGE_BYTES)
    first = GrantTable(0, pages)
    first.set_version(version)
    first.grow(frames)
    for ref in range(8, 41):
        entry = struct.pack("<HHIQ", 1 | ref % 2 << 2, BACKEND, 0, ref) if version == 2 else None
        pages.write(ref * 16 if version == 2 else ref * 8, entry or struct.pack("<HHI", 1 | ref % 2 << 2, BACKEND, ref))

    def answers(table: GrantTable, wanted: list[tuple[int, bool]]) -> list[int]:
        found = []
        for ref, write in wanted:
            try:
                found.append(table.acquire(GrantRef(ref), BACKEND, write=write))
            except XenError as error:
                found.append(-error.code)
        return found

    answers(first, uses)
    copied = Bytes(TABLE_PAGES * PAGE_BYTES)
    copied.write(0, bytes(pages.data))
    second = GrantTable(0, copied)
    second.restore(first.record())
    assert answers(second, later) == answers(first, later)
    for ref in first.in_use():
        for table in (first, second):
            table.release(ref, write=bool(dict(table.record().users)[ref] >> 32))
    assert (first.record(), bytes(pages.data)) == (second.record(), bytes(copied.data))
