"""Using what other domains have granted, and event channels between domains."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Domain, Hypervisor
from vmm.xenabi.constants import DOMID_SELF, EvtchnStatusKind, Hypercall, MapSpace
from vmm.xenabi.hypercalls import dispatch
from vmm.xenabi.hypercalls.grant_table_op import AT_A_TIME
from vmm.xenabi.structs import (
    AddToPhysmap,
    AddToPhysmapBatch,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnStatus,
    GnttabCopy,
    GnttabMapGrantRef,
    GnttabUnmapGrantRef,
    HvmParamOp,
)
from vmm.xenabi.values import Domid, Gfn, GrantRef, Port, Restart

ARGUMENT = 0x2000
OKAY, GENERAL, BAD_DOMAIN, BAD_REF, BAD_HANDLE, BAD_ADDRESS, DENIED = 0, -1, -2, -3, -4, -5, -8
BAD_PAGE, BAD_COPY = -9, -10
HOST_MAP, READ_ONLY = 2, 4
PLACE, PAGE = 0x500, Gfn(0x1234)


class Two:
    """A domain that maps, and one that grants it a page."""

    def __init__(self, *, privileged: bool = False) -> None:
        self.hypervisor = Hypervisor()
        self.mapper = Domain(privileged=privileged, hypervisor=self.hypervisor)
        self.granter = Domain(hypervisor=self.hypervisor)
        self.ref = self.grant(PAGE)

    def grant(self, gfn: Gfn, *, ref: int = 9, to: int | None = None, flags: int = 1) -> GrantRef:
        entry = struct.pack("<HHI", flags, self.mapper.domid if to is None else to, gfn)
        self.granter.grant_pages.write(8 * ref, entry)
        return GrantRef(ref)

    def flags(self) -> int:
        return int.from_bytes(self.granter.grant_pages.read(8 * self.ref, 2), "little")

    def map(
        self, *, ref: int | None = None, flags: int = HOST_MAP, dom: int | None = None, place: int = PLACE
    ) -> GnttabMapGrantRef:
        operation = GnttabMapGrantRef(
            host_addr=place << 12, flags=flags, ref=self.ref if ref is None else ref,
            dom=self.granter.domid if dom is None else dom,
        )  # fmt: skip
        self.mapper.vcpus[0].write_virtual(ARGUMENT, operation.pack())
        assert dispatch(self.mapper.call(Hypercall.grant_table_op, 0, ARGUMENT, 1)) == 0
        return GnttabMapGrantRef.unpack(self.mapper.vcpus[0].read_virtual(ARGUMENT, operation.sizeof()))

    def unmap(self, handle: int, place: int = PLACE) -> int:
        operation = GnttabUnmapGrantRef(host_addr=place << 12, handle=handle)
        self.mapper.vcpus[0].write_virtual(ARGUMENT, operation.pack())
        assert dispatch(self.mapper.call(Hypercall.grant_table_op, 1, ARGUMENT, 1)) == 0
        return GnttabUnmapGrantRef.unpack(self.mapper.vcpus[0].read_virtual(ARGUMENT, operation.sizeof())).status

    def copy(self, **fields: int) -> int:
        operation = GnttabCopy(**fields)
        self.mapper.vcpus[0].write_virtual(ARGUMENT, operation.pack())
        assert dispatch(self.mapper.call(Hypercall.grant_table_op, 5, ARGUMENT, 1)) == 0
        return GnttabCopy.unpack(self.mapper.vcpus[0].read_virtual(ARGUMENT, operation.sizeof())).status


@pytest.fixture
def two() -> Two:
    return Two()


def test_a_mapped_grant_is_shown_and_marked_until_it_is_unmapped(two: Two) -> None:
    mapped = two.map()
    assert mapped.status == OKAY
    assert two.mapper.memory.foreign[Gfn(PLACE)] == (two.granter.memory, PAGE, True)
    assert two.flags() == 1 | 0x18  # reading and writing
    assert two.unmap(mapped.handle) == OKAY
    assert (two.mapper.memory.foreign, two.flags(), two.granter.grants.in_use()) == ({}, 1, [])


def test_a_read_only_mapping_is_marked_as_that(two: Two) -> None:
    mapped = two.map(flags=HOST_MAP | READ_ONLY)
    assert (mapped.status, two.flags()) == (OKAY, 1 | 0x08)
    assert not two.mapper.memory.foreign[Gfn(PLACE)][2]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"ref": 1 << 20}, BAD_REF),
        ({"ref": 10}, GENERAL),
        ({"dom": 99}, BAD_DOMAIN),
        ({"flags": 0}, BAD_REF),
        ({"flags": 1}, GENERAL),
        ({"flags": HOST_MAP | 16}, GENERAL),
        ({"place": 1 << 30}, BAD_ADDRESS),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_and_leaves_nothing(two: Two, words: dict[str, int], status: int) -> None:
    assert two.map(**words).status == status
    assert (two.flags(), len(two.mapper.grant_maps), two.granter.grants.in_use()) == (1, 0, [])


def test_a_grant_to_another_or_for_reading_or_of_an_absent_page_is_refused(two: Two) -> None:
    two.grant(PAGE, to=7)
    assert two.map().status == GENERAL
    two.grant(PAGE, flags=1 | 4)
    assert two.map().status == GENERAL
    two.grant(Gfn(0x9999))
    assert two.map().status == BAD_ADDRESS
    assert two.granter.grants.in_use() == []


def test_a_handle_is_good_once_and_at_its_own_place(two: Two) -> None:
    handle = two.map().handle
    assert two.unmap(handle, PLACE + 1) == BAD_HANDLE
    assert two.unmap(handle + 1) == BAD_HANDLE
    assert [two.unmap(handle), two.unmap(handle)] == [OKAY, BAD_HANDLE]


def test_handles_that_are_free_are_given_again(two: Two) -> None:
    first, second = two.map().handle, two.map(place=PLACE + 1).handle
    assert first != second
    two.unmap(first)
    third = two.map(place=PLACE + 2).handle
    assert third == first


def test_what_a_domain_has_mapped_ends_with_it_and_with_the_granter(two: Two) -> None:
    two.map()
    two.map(place=PLACE + 1)
    two.mapper.grant_maps.end_all(two.mapper.memory)
    assert (two.flags(), two.granter.grants.in_use(), two.mapper.memory.foreign) == (1, [], {})
    handle = two.map().handle
    two.granter.grants.close()
    assert two.map(place=PLACE + 1).status == GENERAL
    assert two.unmap(handle) == OKAY


def test_a_long_list_gives_way_and_goes_on(two: Two) -> None:
    for index in range(AT_A_TIME + 1):
        two.mapper.vcpus[0].write_virtual(ARGUMENT + index * 24, GnttabUnmapGrantRef(handle=index).pack())
    outcome = dispatch(two.mapper.call(Hypercall.grant_table_op, 1, ARGUMENT, AT_A_TIME + 1))
    assert outcome == Restart((1, ARGUMENT + AT_A_TIME * 24, 1))


def test_a_list_that_cannot_be_read_is_efault(two: Two) -> None:
    assert dispatch(two.mapper.call(Hypercall.grant_table_op, 0, 1 << 50, 1)) == -errno.EFAULT
    assert dispatch(two.mapper.call(Hypercall.grant_table_op, 0, 1 << 50, 0)) == 0


def test_bytes_are_copied_between_grants_and_pages(two: Two) -> None:
    two.granter.memory.page(PAGE)[100:105] = b"hello"
    own = Gfn(0x1111)
    assert two.copy(
        source=two.ref, source_domid=two.granter.domid, source_offset=100, dest=own, dest_domid=DOMID_SELF,
        dest_offset=8, len=5, flags=1,
    ) == OKAY  # fmt: skip
    assert bytes(two.mapper.memory.page(own)[8:13]) == b"hello"
    assert two.copy(
        source=own, source_domid=DOMID_SELF, dest=two.ref, dest_domid=two.granter.domid, dest_offset=4091, len=5, flags=2,
    ) == OKAY  # fmt: skip
    assert two.flags() == 1


OWN_PAGES = {"source": PAGE, "source_domid": DOMID_SELF, "dest": PAGE, "dest_domid": DOMID_SELF}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({**OWN_PAGES, "source_offset": 4095, "len": 2}, BAD_COPY),
        ({**OWN_PAGES, "dest_offset": 4095, "len": 2}, BAD_COPY),
        ({"source": 1 << 40, "source_domid": DOMID_SELF, "dest": PAGE, "dest_domid": DOMID_SELF, "len": 1}, BAD_PAGE),
        ({"source": PAGE, "source_domid": 2, "dest": PAGE, "dest_domid": DOMID_SELF, "len": 1}, DENIED),
        ({"source": 1 << 20, "source_domid": 2, "dest": PAGE, "dest_domid": DOMID_SELF, "len": 1, "flags": 1}, BAD_REF),
        ({"source": PAGE, "source_domid": 55, "dest": PAGE, "dest_domid": DOMID_SELF, "len": 1, "flags": 1}, BAD_DOMAIN),
    ],
)
def test_a_copy_that_cannot_be_is_refused(two: Two, fields: dict[str, int], status: int) -> None:
    assert two.copy(**fields) == status


@given(st.binary(min_size=40, max_size=40), st.integers(0, 5))
def test_no_operation_with_random_content_raises(content: bytes, operation: int) -> None:
    two = Two()
    two.mapper.vcpus[0].write_virtual(ARGUMENT, content)
    assert -256 < dispatch(two.mapper.call(Hypercall.grant_table_op, operation, ARGUMENT, 1)) <= 0


# ------------------------------------------------------------------------------------- foreign pages


def batch(domain: Domain, foreign: int, gfns: list[int], *, target: int = DOMID_SELF) -> tuple[int, list[int]]:
    """Map a foreign domain's pages from gfn 0x800 on: the result, and each page's."""
    count, vcpu = len(gfns), domain.vcpus[0]
    vcpu.write_virtual(0x3000, struct.pack(f"<{count}Q", *gfns))
    vcpu.write_virtual(0x4000, struct.pack(f"<{count}Q", *range(0x800, 0x800 + count)))
    op = AddToPhysmapBatch(
        domid=target, space=MapSpace.gmfn_foreign, size=count, u=foreign, idxs=0x3000, gpfns=0x4000, errs=0x5000
    )
    vcpu.write_virtual(ARGUMENT, op.pack())
    result = dispatch(domain.call(Hypercall.memory_op, 23, ARGUMENT))
    return result, list(struct.unpack(f"<{count}i", vcpu.read_virtual(0x5000, 4 * count)))


def test_dom0_maps_pages_of_any_domain_each_with_an_errno_of_its_own() -> None:
    two = Two(privileged=True)
    assert batch(two.mapper, two.granter.domid, [PAGE, 0x99999, PAGE + 1]) == (0, [0, -errno.EINVAL, 0])
    assert two.mapper.memory.foreign[Gfn(0x802)] == (two.granter.memory, PAGE + 1, True)
    assert batch(two.mapper, 77, [PAGE])[1] == [-errno.ESRCH]
    assert batch(two.mapper, two.mapper.domid, [PAGE])[1] == [-errno.EINVAL]


def test_nobody_else_does(two: Two) -> None:
    assert batch(two.mapper, two.granter.domid, [PAGE])[1] == [-errno.EPERM]
    assert batch(two.mapper, DOMID_SELF, [PAGE], target=two.granter.domid)[0] == -errno.EPERM


def test_a_single_foreign_page_cannot_be_asked_for() -> None:
    two = Two(privileged=True)
    op = AddToPhysmap(domid=DOMID_SELF, space=MapSpace.gmfn_foreign, idx=PAGE, gpfn=0x800)
    two.mapper.vcpus[0].write_virtual(ARGUMENT, op.pack())
    assert dispatch(two.mapper.call(Hypercall.memory_op, 7, ARGUMENT)) == -errno.ENOSYS


@pytest.mark.parametrize(("privileged", "result"), [(True, 0), (False, -errno.EPERM)])
def test_parameters_of_another_domain_are_dom0s_to_read(privileged: bool, result: int) -> None:
    two = Two(privileged=privileged)
    two.granter.hvm_params[1] = 0xFEFFC
    two.mapper.vcpus[0].write_virtual(ARGUMENT, HvmParamOp(domid=two.granter.domid, index=1).pack())
    assert dispatch(two.mapper.call(Hypercall.hvm_op, 1, ARGUMENT)) == result


# ------------------------------------------------------------------------------ channels between domains


def bind(domain: Domain, remote: int, port: int) -> tuple[int, Port]:
    domain.vcpus[0].write_virtual(ARGUMENT, EvtchnBindInterdomain(remote_dom=remote, remote_port=port).pack())
    result = dispatch(domain.call(Hypercall.event_channel_op, 0, ARGUMENT))
    return result, Port(EvtchnBindInterdomain.unpack(domain.vcpus[0].read_virtual(ARGUMENT, 12)).local_port)


def pending(domain: Domain, port: int) -> bool:
    byte = domain.shared_info.data[0x800 + port // 8]
    domain.shared_info.data[0x800 + port // 8] = 0
    return bool(byte >> port % 8 & 1)


def test_a_channel_between_two_domains_rings_both_ways(two: Two) -> None:
    far = two.granter.events.alloc_unbound(two.mapper.domid)
    result, near = bind(two.mapper, two.granter.domid, far)
    assert (result, pending(two.mapper, near)) == (0, True)  # something may have been sent before
    two.mapper.events.send(near)
    assert pending(two.granter, far)
    two.granter.events.send(far)
    assert pending(two.mapper, near)


def test_an_end_that_closes_leaves_the_other_unbound(two: Two) -> None:
    for closing in ("near", "far"):
        far = two.granter.events.alloc_unbound(two.mapper.domid)
        near = bind(two.mapper, two.granter.domid, far)[1]
        first, port, second, other = (
            (two.mapper, near, two.granter, far) if closing == "near" else (two.granter, far, two.mapper, near)
        )
        first.events.close(port)
        left = second.events.status(other)
        assert left is not None
        assert (left.kind, left.remote_domid) == (EvtchnStatusKind.unbound, first.domid)
        second.events.send(other)
        assert not pending(first, port)
        second.events.close(other)


def test_a_domain_that_ends_closes_all_of_its_ends(two: Two) -> None:
    ports = [two.granter.events.alloc_unbound(two.mapper.domid) for _ in range(3)]
    for port in ports:
        assert bind(two.mapper, two.granter.domid, port)[0] == 0
    two.mapper.events.close_all()
    kinds = [channel.kind for channel in two.granter.events.channels()]
    assert kinds == [EvtchnStatusKind.unbound] * 3
    assert two.mapper.events.channels() == []


@pytest.mark.parametrize(
    ("to", "port", "code"), [(7, 1, errno.EINVAL), (None, 9, errno.EINVAL), (None, 1 << 31, errno.EINVAL)]
)
def test_a_port_that_is_not_left_for_the_caller_cannot_be_bound(two: Two, to: int | None, port: int, code: int) -> None:
    two.granter.events.alloc_unbound(Domid(two.mapper.domid if to is None else to))
    assert bind(two.mapper, two.granter.domid, port)[0] == -errno.EINVAL
    assert two.mapper.events.channels() == []


def test_a_domain_that_is_not_there_is_esrch(two: Two) -> None:
    assert bind(two.mapper, 99, 1)[0] == -errno.ESRCH


@pytest.mark.parametrize(("privileged", "result"), [(True, 0), (False, -errno.EPERM)])
def test_ports_of_another_domain_are_dom0s_to_make_and_to_see(privileged: bool, result: int) -> None:
    two = Two(privileged=privileged)
    vcpu = two.mapper.vcpus[0]
    vcpu.write_virtual(ARGUMENT, EvtchnAllocUnbound(dom=two.granter.domid, remote_dom=DOMID_SELF).pack())
    assert dispatch(two.mapper.call(Hypercall.event_channel_op, 6, ARGUMENT)) == result
    vcpu.write_virtual(ARGUMENT, EvtchnStatus(dom=two.granter.domid, port=1).pack())
    assert dispatch(two.mapper.call(Hypercall.event_channel_op, 5, ARGUMENT)) == result
    if privileged:
        assert EvtchnStatus.unpack(vcpu.read_virtual(ARGUMENT, 24)).status == EvtchnStatusKind.unbound
