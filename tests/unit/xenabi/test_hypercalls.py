"""The registry and its hypercalls, with plain objects for the world."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Domain
from vmm.observe.trace.filters import known_names, parse_filter
from vmm.xenabi.constants import DOMID_SELF, EvtchnStatusKind, HvmParam, Hypercall, MapSpace, ShutdownReason
from vmm.xenabi.cstruct import Abi, Struct
from vmm.xenabi.hypercalls import TABLE, Entry, dispatch, name_of
from vmm.xenabi.hypercalls.registry import Suboperations, suboperation
from vmm.xenabi.state import Call
from vmm.xenabi.structs import (
    AddToPhysmap,
    AddToPhysmapBatch,
    EvtchnBindPirq,
    EvtchnStatus,
    GnttabGetVersion,
    GnttabQuerySize,
    GnttabSetupTable,
    HvmParamOp,
    MemoryDomain,
    MemoryReservation,
    MulticallEntry,
    SchedPoll,
    SchedWatchdog,
    SetSingleshotTimer,
)
from vmm.xenabi.values import Domid, Restart, Wait
from vmm.xenabi.versions import behaviour

ARGUMENT = 0x2000


@pytest.fixture
def domain() -> Domain:
    return Domain()


def test_unknown_hypercall_is_enosys_and_counted(domain: Domain) -> None:
    assert dispatch(domain.call(63)) == -errno.ENOSYS
    assert dispatch(domain.call(Hypercall.sched_op, 99)) == -errno.ENOSYS
    assert dispatch(domain.call(Hypercall.hvm_op, 99)) == -errno.ENOSYS
    assert domain.unknown_hypercalls == {"hypercall 63": 1, "sched_op.99": 1, "hvm_op.99": 1}


def test_every_entry_has_a_name_and_a_docstring_with_meaning() -> None:
    entries = [found for found in TABLE.values() if isinstance(found, Entry)]
    entries += [entry for found in TABLE.values() if not isinstance(found, Entry) for entry in found.entries.values()]
    assert len(entries) > 40
    for entry in entries:
        assert entry.handler.__doc__, entry.name


def test_names_are_xens() -> None:
    assert name_of(Hypercall.event_channel_op, (4,)) == "event_channel_op.send"
    assert name_of(Hypercall.memory_op, (7 | 3 << 6,)) == "memory_op.add_to_physmap"


def test_a_new_suboperation_is_one_decorated_function(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    group = TABLE[Hypercall.sched_op]
    assert isinstance(group, Suboperations)
    monkeypatch.setattr(group, "entries", dict(group.entries))

    @suboperation(Hypercall.sched_op, 77, "tell", arg=SchedPoll)
    def tell(call: Call, poll: SchedPoll) -> int:
        return poll.nr_ports

    raw = SchedPoll(ports=0, nr_ports=5, timeout=0).pack(Abi.X86_64)
    domain.vcpus[0].write_virtual(ARGUMENT, raw)
    assert dispatch(domain.call(Hypercall.sched_op, 77, ARGUMENT)) == 5
    assert dispatch(domain.call(Hypercall.sched_op, 77, 0xDEAD_0000_0000)) == -errno.EFAULT
    assert name_of(Hypercall.sched_op, (77,)) == "sched_op.tell"
    assert {"sched_op.tell", "tell"} <= set(known_names())
    assert parse_filter("sched_op.tell").names == ("sched_op.tell",)


def test_version_and_texts_are_as_configured(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.xen_version, 0)) == 4 << 16 | 17
    assert dispatch(domain.call(Hypercall.xen_version, 1, ARGUMENT)) == 0
    assert domain.vcpus[0].read_virtual(ARGUMENT, 16) == b".7".ljust(16, b"\0")
    assert dispatch(domain.call(Hypercall.xen_version, 8, ARGUMENT)) == 0
    assert domain.vcpus[0].read_virtual(ARGUMENT, 16) == domain.handle


def test_features_are_those_of_the_reference(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.xen_version, 6, ARGUMENT)) == 0
    assert domain.vcpus[0].read_virtual(ARGUMENT + 4, 4) == struct.pack("<I", 0x12305)


def test_build_id_is_denied_to_a_domu(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.xen_version, 10)) == -errno.EPERM


def test_console_io_prints(domain: Domain) -> None:
    domain.vcpus[0].write_virtual(ARGUMENT, b"x" * 9000)
    assert dispatch(domain.call(Hypercall.console_io, 0, 9000, ARGUMENT)) == Restart((0, 9000 - 4096, ARGUMENT + 4096))
    assert dispatch(domain.call(Hypercall.console_io, 0, 9000 - 8192, ARGUMENT + 8192)) == 0
    assert domain.printed == b"x" * (9000 - 4096)


@pytest.mark.parametrize("reason", ShutdownReason)
def test_shutdown_with_every_reason(domain: Domain, reason: ShutdownReason) -> None:
    domain.vcpus[0].write_virtual(ARGUMENT, struct.pack("<I", reason))
    assert dispatch(domain.call(Hypercall.sched_op, 2, ARGUMENT)) == 0
    assert domain.ended == [reason]


def test_shutdown_with_an_unknown_reason_is_einval(domain: Domain) -> None:
    domain.vcpus[0].write_virtual(ARGUMENT, struct.pack("<I", 77))
    assert dispatch(domain.call(Hypercall.sched_op, 2, ARGUMENT)) == -errno.EINVAL
    assert not domain.ended


def test_hvm_params_are_checked_against_what_a_guest_may(domain: Domain) -> None:
    def param(op: int, index: int, value: int = 0, domid: int = DOMID_SELF) -> int:
        domain.vcpus[0].write_virtual(ARGUMENT, HvmParamOp(domid=domid, index=index, value=value).pack())
        return dispatch(domain.call(Hypercall.hvm_op, op, ARGUMENT))

    domain.hvm_params[HvmParam.CONSOLE_PFN] = 0xFEFFF
    assert param(1, HvmParam.CONSOLE_PFN) == 0
    assert HvmParamOp.unpack(domain.vcpus[0].read_virtual(ARGUMENT, 16)).value == 0xFEFFF
    assert param(0, HvmParam.CALLBACK_IRQ, 2 << 56 | 0xF3) == 0
    assert domain.hvm_params[HvmParam.CALLBACK_IRQ] == 2 << 56 | 0xF3
    assert param(0, HvmParam.CONSOLE_PFN, 1) == -errno.EPERM
    assert param(1, 39) == -errno.EINVAL
    assert param(1, HvmParam.CONSOLE_PFN, domid=7) == -errno.ESRCH


def test_32_bit_structures_are_read_in_their_own_layout(domain: Domain) -> None:
    request = AddToPhysmap(domid=DOMID_SELF, space=MapSpace.grant_table, idx=1, gpfn=0x777)
    domain.vcpus[0].write_virtual(ARGUMENT, request.pack(Abi.X86_32))
    assert dispatch(domain.call(Hypercall.memory_op, 7, ARGUMENT, abi=Abi.X86_32)) == 0
    assert domain.memory.placed == {2: 0x777}


def test_a_timer_in_the_past_is_no_error_whatever_is_asked(domain: Domain) -> None:
    for flags in (1, 0):
        domain.vcpus[0].write_virtual(ARGUMENT, SetSingleshotTimer(timeout_abs_ns=5, flags=flags).pack())
        assert dispatch(domain.call(Hypercall.vcpu_op, 8, 0, ARGUMENT)) == 0
        assert domain.vcpus[0].timer == 5


def test_timers_belong_to_the_calling_vcpu(domain: Domain) -> None:
    domain.vcpus[0].write_virtual(ARGUMENT, SetSingleshotTimer(timeout_abs_ns=5).pack())
    assert dispatch(domain.call(Hypercall.vcpu_op, 8, 1, ARGUMENT)) == -errno.EINVAL
    assert dispatch(domain.call(Hypercall.vcpu_op, 8, 2, ARGUMENT)) == -errno.ENOENT


def test_32_bit_set_timer_op_joins_two_words(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.set_timer_op, 2, 1, abi=Abi.X86_32)) == 0
    assert domain.vcpus[0].timer == 1 << 32 | 2


def test_status_of_a_bound_port_tells_its_kind(domain: Domain) -> None:
    port = domain.events.bind_ipi(1)
    domain.vcpus[0].write_virtual(ARGUMENT, EvtchnStatus(dom=DOMID_SELF, port=port).pack())
    assert dispatch(domain.call(Hypercall.event_channel_op, 5, ARGUMENT)) == 0
    found = EvtchnStatus.unpack(domain.vcpus[0].read_virtual(ARGUMENT, EvtchnStatus.sizeof()))
    assert (found.status, found.vcpu) == (5, 1)


@pytest.mark.parametrize("abi", Abi, ids=lambda abi: abi.name)
def test_long_multicall_gives_way_where_it_stopped(domain: Domain, abi: Abi) -> None:
    size = MulticallEntry.sizeof(abi)
    entry = MulticallEntry(op=Hypercall.xen_version, arg0=0).pack(abi)
    domain.vcpus[0].write_virtual(ARGUMENT, entry * 100)
    call = domain.call(Hypercall.multicall, ARGUMENT, 100, abi=abi)
    assert dispatch(call) == Restart((ARGUMENT + 64 * size, 36))
    assert call.number == Hypercall.multicall
    rest = domain.call(Hypercall.multicall, ARGUMENT + 64 * size, 36, abi=abi)
    assert dispatch(rest) == 0
    last = MulticallEntry.unpack(domain.vcpus[0].read_virtual(ARGUMENT + 99 * size, size), abi)
    assert last.result == 0x40011


COMMANDS = {number: [None] if isinstance(found, Entry) else [*found.entries, 63] for number, found in TABLE.items()} | {
    63: [None]
}
WORDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, ARGUMENT, 0x1000, 0x10FF8, 0x11000, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1]),
)


@given(
    number=st.sampled_from(sorted(COMMANDS)),
    data=st.data(),
    arguments=st.lists(WORDS, min_size=6, max_size=6),
    content=st.binary(max_size=256),
    abi=st.sampled_from(Abi),
)
def test_hostile_arguments_end_in_a_result_or_an_errno(
    number: int, data: st.DataObject, arguments: list[int], content: bytes, abi: Abi
) -> None:
    domain = Domain()
    domain.vcpus[0].write_virtual(ARGUMENT, content)
    command = data.draw(st.sampled_from(COMMANDS[number]))
    if command is not None:
        arguments[0] = command
    if abi is Abi.X86_32:
        arguments = [word & 0xFFFFFFFF for word in arguments]
    if data.draw(st.booleans()):
        arguments[1 + (number == Hypercall.vcpu_op)] = ARGUMENT
    result = dispatch(domain.call(number, *arguments, abi=abi))
    assert isinstance(result, Restart | Wait) or result >= -200
    assert not domain.crashes or number == Hypercall.hvm_op, "by a task state that no CPU could use, as on Xen"


def reservation(domain: Domain, gfns: list[int], order: int = 0, count: int | None = None) -> None:
    listed = b"".join(struct.pack("<Q", gfn) for gfn in gfns)
    domain.vcpus[0].write_virtual(0x3000, listed)
    op = MemoryReservation(extent_start=0x3000, nr_extents=count or len(gfns), extent_order=order, domid=DOMID_SELF)
    domain.vcpus[0].write_virtual(ARGUMENT, op.pack())


def test_pages_given_back_can_be_had_again(domain: Domain) -> None:
    reservation(domain, [0x1000, 0x1001])
    assert dispatch(domain.call(Hypercall.memory_op, 1, ARGUMENT)) == 2
    assert not {0x1000, 0x1001} & domain.memory.present
    assert dispatch(domain.call(Hypercall.memory_op, 1, ARGUMENT)) == 0, "they are not there any more"
    assert dispatch(domain.call(Hypercall.memory_op, 6, ARGUMENT)) == 2
    assert {0x1000, 0x1001} <= domain.memory.present


def test_extents_stop_at_the_first_that_fails_or_cannot_be_read(domain: Domain) -> None:
    reservation(domain, [0x1200, 0x1401, 0x1800], order=9)
    assert dispatch(domain.call(Hypercall.memory_op, 1, ARGUMENT)) == Restart((1 | 1 << 6,))
    assert dispatch(domain.call(Hypercall.memory_op, 1 | 1 << 6, ARGUMENT)) == Restart((1 | 2 << 6,)), "aligned or not"
    reservation(domain, [0x1000], order=10)
    assert dispatch(domain.call(Hypercall.memory_op, 1, ARGUMENT)) == 0, "larger than a domU may"
    reservation(domain, [0x1000], count=2**60)
    assert dispatch(domain.call(Hypercall.memory_op, 1, ARGUMENT)) == 0, "more than a continued call could count"


def test_many_extents_give_way_and_go_on_where_they_were(domain: Domain) -> None:
    reservation(domain, [0x1000 + 512 * index for index in range(16)], order=9)
    for done in range(1, 16):
        assert dispatch(domain.call(Hypercall.memory_op, 1 | (done - 1) << 6, ARGUMENT)) == Restart((1 | done << 6,))
    assert dispatch(domain.call(Hypercall.memory_op, 1 | 15 << 6, ARGUMENT)) == 16


def test_grant_version_2_has_status_frames_and_keeps_the_reserved_entries(domain: Domain) -> None:
    console = struct.pack("<HHI", 1, 0, 0xFEFFF)
    domain.grant_pages.write(0, console)
    domain.grant_pages.write(8 * 8, b"in use")
    assert grant_version(domain, 2) == 0
    assert domain.grant_pages.read(0, 16) == struct.pack("<HHIQ", 1, 0, 0, 0xFEFFF)
    assert domain.grant_pages.read(8 * 16, 16) == bytes(16)
    assert domain.grants.status_frames == 1
    assert domain.grants.page(1 << 31) == 1 + 64
    assert grant_version(domain, 1) == 0
    assert domain.grant_pages.read(0, 8) == console
    assert grant_version(domain, 3) == -errno.EINVAL


def grant_version(domain: Domain, version: int) -> int:
    domain.vcpus[0].write_virtual(ARGUMENT, struct.pack("<I", version))
    return dispatch(domain.call(Hypercall.grant_table_op, 8, ARGUMENT))


def test_setup_table_tells_where_the_frames_are(domain: Domain) -> None:
    domain.memory.placed[1] = 0x777
    domain.vcpus[0].write_virtual(ARGUMENT, GnttabSetupTable(dom=DOMID_SELF, nr_frames=2, frame_list=0x3000).pack())
    assert dispatch(domain.call(Hypercall.grant_table_op, 2, ARGUMENT, 1)) == 0
    assert domain.vcpus[0].read_virtual(0x3000, 16) == struct.pack("<QQ", 0x777, 2**64 - 1)
    domain.vcpus[0].write_virtual(ARGUMENT, GnttabSetupTable(dom=DOMID_SELF, nr_frames=65).pack())
    assert dispatch(domain.call(Hypercall.grant_table_op, 2, ARGUMENT, 1)) == 0
    assert GnttabSetupTable.unpack(domain.vcpus[0].read_virtual(ARGUMENT, GnttabSetupTable.sizeof())).status == -1


def test_the_one_assist_of_a_pvh_guest_can_be_turned_on_and_off(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.vm_assist, 0, 5)) == 0
    assert domain.assists == {5}
    assert dispatch(domain.call(Hypercall.vm_assist, 1, 5)) == 0
    assert not domain.assists
    assert dispatch(domain.call(Hypercall.vm_assist, 0, 4)) == -errno.EINVAL


def multicall(domain: Domain, *entries: MulticallEntry) -> int:
    size = MulticallEntry.sizeof()
    domain.vcpus[0].write_virtual(ARGUMENT, b"".join(entry.pack() for entry in entries))
    return size


def test_an_entry_of_a_multicall_that_gives_way_goes_on_where_it_was(domain: Domain) -> None:
    reservation(domain, [0x1000 + 512 * index for index in range(2)], order=9)
    domain.vcpus[0].write_virtual(0x4000, domain.vcpus[0].read_virtual(ARGUMENT, MemoryReservation.sizeof()))
    size = multicall(
        domain,
        MulticallEntry(op=Hypercall.xen_version, arg0=0),
        MulticallEntry(op=Hypercall.memory_op, arg0=1, arg1=0x4000),
        MulticallEntry(op=Hypercall.xen_version, arg0=0),
    )
    assert dispatch(domain.call(Hypercall.multicall, ARGUMENT, 3)) == Restart((ARGUMENT + size, 2))
    assert dispatch(domain.call(Hypercall.multicall, ARGUMENT + size, 2)) == 0
    results = [
        MulticallEntry.unpack(domain.vcpus[0].read_virtual(ARGUMENT + index * size, size)).result for index in range(3)
    ]
    assert results == [0x40011, 2, 0x40011]


def test_an_entry_of_a_multicall_that_waits_is_answered_once_it_has(domain: Domain) -> None:
    domain.vcpus[0].write_virtual(0x4000, SchedPoll().pack())
    size = multicall(domain, MulticallEntry(op=Hypercall.sched_op, arg0=3, arg1=0x4000, result=99))
    outcome = dispatch(domain.call(Hypercall.multicall, ARGUMENT, 1))
    assert isinstance(outcome, Wait)
    assert outcome.finish() == Restart((ARGUMENT + size, 0))
    assert MulticallEntry.unpack(domain.vcpus[0].read_virtual(ARGUMENT, size)).result == 0


def test_a_long_batch_of_pages_gives_way_and_goes_on_where_it_was(domain: Domain) -> None:
    op = AddToPhysmapBatch(domid=DOMID_SELF, space=1, size=130, idxs=0x4000, gpfns=0x5000, errs=0x6000)
    domain.vcpus[0].write_virtual(ARGUMENT, op.pack())
    for done in (64, 128):
        command = 23 | done - 64 << 6
        assert dispatch(domain.call(Hypercall.memory_op, command, ARGUMENT)) == Restart((23 | done << 6,))
    assert dispatch(domain.call(Hypercall.memory_op, 23 | 128 << 6, ARGUMENT)) == 0
    assert dispatch(domain.call(Hypercall.memory_op, 23 | 131 << 6, ARGUMENT)) == -errno.EILSEQ


def test_every_guest_may_know_how_much_ram_the_host_has(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.memory_op, 2)) == domain.hypervisor.highest_page
    assert dispatch(domain.call(Hypercall.memory_op, 2 | 1 << 6)) == -errno.EINVAL


# ------------------------------------------------------------------------- what random programs found on Xen


def ask(domain: Domain, number: Hypercall, command: int, op: Struct, *more: int) -> int:
    domain.vcpus[0].write_virtual(ARGUMENT, op.pack())
    result = dispatch(domain.call(number, command, ARGUMENT, *more))
    assert isinstance(result, int)
    return result


def test_a_domid_that_is_nobodys_is_esrch_and_anothers_eperm(domain: Domain) -> None:
    other = Domain(hypervisor=domain.hypervisor)
    for domid, refused in ((99, errno.ESRCH), (0x7FF1, errno.ESRCH), (0, errno.EPERM), (other.domid, errno.EPERM)):
        assert ask(domain, Hypercall.memory_op, 3, MemoryDomain(domid=domid)) == -refused
        assert ask(domain, Hypercall.event_channel_op, 5, EvtchnStatus(dom=domid, port=1)) == -refused
        assert ask(domain, Hypercall.grant_table_op, 10, GnttabGetVersion(dom=domid), 1) == -refused


@pytest.mark.parametrize("count", [0, 2, 0x8000_0000, 0xFFFF_FFFF])
def test_the_size_of_one_grant_table_alone_is_told_at_a_time(domain: Domain, count: int) -> None:
    assert ask(domain, Hypercall.grant_table_op, 6, GnttabQuerySize(dom=DOMID_SELF), count) == -errno.EINVAL


def test_a_pirq_may_be_bound_once(domain: Domain) -> None:
    assert ask(domain, Hypercall.event_channel_op, 2, EvtchnBindPirq(pirq=1)) == 0
    assert ask(domain, Hypercall.event_channel_op, 2, EvtchnBindPirq(pirq=1)) == -errno.EEXIST
    assert ask(domain, Hypercall.event_channel_op, 2, EvtchnBindPirq(pirq=255)) == -errno.EINVAL
    assert ask(domain, Hypercall.event_channel_op, 5, EvtchnStatus(dom=DOMID_SELF, port=1)) == 0
    told = EvtchnStatus.unpack(domain.vcpus[0].read_virtual(ARGUMENT, EvtchnStatus.sizeof()))
    assert (told.status, told.u_dom) == (EvtchnStatusKind.pirq, 1)


def test_numbers_of_ports_come_to_be_64_at_a_time(domain: Domain) -> None:
    assert ask(domain, Hypercall.event_channel_op, 5, EvtchnStatus(dom=DOMID_SELF, port=63)) == 0, "closed"
    assert ask(domain, Hypercall.event_channel_op, 5, EvtchnStatus(dom=DOMID_SELF, port=64)) == -errno.EINVAL
    for _ in range(64):
        domain.events.alloc_unbound(Domid(0))
    assert ask(domain, Hypercall.event_channel_op, 5, EvtchnStatus(dom=DOMID_SELF, port=64)) == 0


def test_padding_of_what_is_written_back_stays(domain: Domain) -> None:
    raw = bytearray(GnttabQuerySize(dom=DOMID_SELF).pack())
    raw[2:4] = b"\xaa\xbb"
    domain.vcpus[0].write_virtual(ARGUMENT, bytes(raw))
    assert dispatch(domain.call(Hypercall.grant_table_op, 6, ARGUMENT, 1)) == 0
    assert domain.vcpus[0].read_virtual(ARGUMENT + 2, 2) == b"\xaa\xbb"


def test_what_a_reservation_cannot_have_is_a_count_and_no_error(domain: Domain) -> None:
    assert ask(domain, Hypercall.memory_op, 6, MemoryReservation(extent_start=0x3000, nr_extents=1, domid=99)) == 0
    assert dispatch(domain.call(Hypercall.memory_op, 6, 1 << 50)) == 0


def test_a_vcpu_that_is_not_there_is_enoent_whatever_is_asked(domain: Domain) -> None:
    assert [dispatch(domain.call(Hypercall.vcpu_op, command, 7)) for command in (0, 3, 14, 99)] == [-errno.ENOENT] * 4


def test_a_domu_asks_for_its_watchdog_and_for_no_physical_cpu(domain: Domain) -> None:
    assert ask(domain, Hypercall.sched_op, 6, SchedWatchdog(id=0, timeout=30)) == 1
    assert domain.watchdogs == [(0, 30)]
    assert ask(domain, Hypercall.sched_op, 7, SchedWatchdog()) == -errno.EPERM


def test_a_page_is_shown_at_another_gfn(domain: Domain) -> None:
    def move(**fields: int) -> int:
        return ask(domain, Hypercall.memory_op, 7, AddToPhysmap(domid=DOMID_SELF, **fields))

    assert move(space=MapSpace.gmfn, idx=0x1000, gpfn=0x9000) == 0
    assert move(space=MapSpace.gmfn_range, idx=0x1001, gpfn=0x9001, size=3) == 0
    assert {0x9000, 0x9001, 0x9002, 0x9003} <= domain.memory.present
    assert move(space=MapSpace.gmfn, idx=0x1000, gpfn=0x9000) == -errno.EINVAL


def test_page_tables_are_nobodys_here(domain: Domain) -> None:
    answers = [dispatch(domain.call(Hypercall.mmuext_op, 0, 1, 0, domid)) for domid in (DOMID_SELF, 0, domain.domid, 99)]
    assert answers == [-errno.EINVAL, -errno.EPERM, -errno.ESRCH, -errno.ESRCH]


def test_long_texts_are_there_from_the_version_that_has_them(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.xen_version, 14, 0)) == -errno.ENOSYS
    domain.behaviour = behaviour(4, 20)
    assert dispatch(domain.call(Hypercall.xen_version, 14, 0)) == len("<denied>")
    for room, result in ((0, -errno.ENOBUFS), (7, -errno.ENOBUFS), (8, 8)):
        domain.vcpus[0].write_virtual(ARGUMENT, struct.pack("<I12x", room))
        assert dispatch(domain.call(Hypercall.xen_version, 14, ARGUMENT)) == result
    assert domain.vcpus[0].read_virtual(ARGUMENT + 4, 9) == b"<denied>\0"


def test_a_version_behaves_as_the_newest_known_one_before_it() -> None:
    assert behaviour(4, 19) == behaviour(4, 17) == behaviour(3, 0)
    assert behaviour(5, 0) == behaviour(4, 20) != behaviour(4, 17)
