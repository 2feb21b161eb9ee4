"""Granted pages: who may use them, and what the guest sees of it."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.frontend import Guest
from vmm.devices.ring.granted import GrantedPages
from vmm.xenabi.grants import MAX_FRAMES
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
