"""Event channels over the 2-level ABI."""

import errno
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Bell, Bytes, Domain, Hypervisor, Vcpu, channels
from vmm.xenabi.constants import EvtchnStatusKind, Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import Backend
from vmm.xenabi.evtchn_abi import TwoLevelLayout
from vmm.xenabi.values import Domid, Gpa, Port, VcpuId, XenError

BACKEND = Domid(0)


def refused(code: int) -> "pytest.RaisesExc[XenError]":
    return pytest.raises(XenError, check=lambda error: error.code == code)


@pytest.fixture
def domain() -> Domain:
    return Domain()


def pending(domain: Domain, port: int) -> bool:
    return bool(domain.shared_info.data[0x800 + port // 8] >> port % 8 & 1)


def mask(domain: Domain, port: int) -> None:
    domain.shared_info.data[0xA00 + port // 8] |= 1 << port % 8


def test_ports_count_up_from_one_and_the_lowest_free_one_is_given_again(domain: Domain) -> None:
    ports = [domain.events.alloc_unbound(BACKEND) for _ in range(3)]
    assert ports == [1, 2, 3]
    domain.events.close(2)
    assert domain.events.alloc_unbound(BACKEND) == 2


def test_ipi_sets_all_three_levels_and_interrupts(domain: Domain) -> None:
    port = domain.events.bind_ipi(1)
    domain.events.send(port)
    vcpu = domain.vcpus[1]
    assert pending(domain, port)
    assert vcpu.info is not None
    assert vcpu.info.data[0] == 1
    assert vcpu.info.data[8] == 1
    assert vcpu.upcalls == 1
    assert domain.vcpus[0].upcalls == 0


def test_second_send_before_the_guest_looks_does_not_interrupt_again(domain: Domain) -> None:
    port = domain.events.bind_ipi(0)
    domain.events.send(port)
    domain.events.send(port)
    assert domain.vcpus[0].upcalls == 1


def test_masked_port_is_pending_but_silent(domain: Domain) -> None:
    port = domain.events.bind_ipi(0)
    mask(domain, port)
    domain.events.send(port)
    assert pending(domain, port)
    assert domain.vcpus[0].upcalls == 0


def test_unmask_delivers_pending_event_once(domain: Domain) -> None:
    port = domain.events.bind_ipi(0)
    mask(domain, port)
    domain.events.send(port)
    domain.events.unmask(port)
    domain.events.unmask(port)
    assert domain.vcpus[0].upcalls == 1


def test_send_reaches_a_backend_that_has_connected(domain: Domain) -> None:
    bell = Bell()
    port = domain.events.alloc_unbound(BACKEND)
    domain.events.send(port)
    domain.events.connect(port, BACKEND, bell)
    domain.events.send(port)
    assert bell.rung == 1


def test_only_the_named_domain_may_connect(domain: Domain) -> None:
    port = domain.events.alloc_unbound(BACKEND)
    with refused(errno.EINVAL):
        domain.events.connect(port, Domid(5), Bell())


def test_loopback_delivers_both_ways_and_closing_one_end_unbinds_the_other(domain: Domain) -> None:
    far = domain.events.alloc_unbound(domain.domid)
    near = domain.events.bind_interdomain(domain.domid, far)
    domain.events.send(near)
    assert pending(domain, far)
    domain.events.send(far)
    assert pending(domain, near)
    domain.events.close(near)
    channel = domain.events.status(far)
    assert channel is not None
    assert channel.kind is EvtchnStatusKind.unbound


def test_timer_virq_is_bound_once_a_vcpu(domain: Domain) -> None:
    first, second = (domain.events.bind_virq(Virq.TIMER, vcpu) for vcpu in (0, 1))
    with refused(errno.EEXIST):
        domain.events.bind_virq(Virq.TIMER, 0)
    domain.events.send_virq(Virq.TIMER, VcpuId(1))
    assert pending(domain, second)
    assert not pending(domain, first)
    domain.events.close(first)
    assert domain.events.bind_virq(Virq.TIMER, 0) == first


def test_virq_nobody_bound_is_dropped(domain: Domain) -> None:
    domain.events.send_virq(Virq.TIMER, VcpuId(0))
    assert not any(domain.shared_info.data)


def test_closed_port_loses_its_pending_bit(domain: Domain) -> None:
    port = domain.events.bind_ipi(0)
    domain.events.send(port)
    domain.events.close(port)
    assert not pending(domain, port)
    with refused(errno.EINVAL):
        domain.events.send(port)
    with refused(errno.EINVAL):
        domain.events.close(port)


def test_events_of_a_moved_port_go_to_the_new_vcpu(domain: Domain) -> None:
    port = domain.events.alloc_unbound(BACKEND)
    domain.events.bind_vcpu(port, 1)
    domain.events.deliver(port)
    assert domain.vcpus[1].upcalls == 1
    ipi = domain.events.bind_ipi(0)
    with refused(errno.EINVAL):
        domain.events.bind_vcpu(ipi, 1)
    with refused(errno.ENOENT):
        domain.events.bind_vcpu(port, 2)


class Kernel:
    """Who would do some of it, and what it is told."""

    active = False

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def observe(self, wanted: bool) -> None:
        self.told.append(("observe", wanted))

    def bind_ipi(self, port: Port, vcpu: VcpuId) -> None:
        self.told.append(("bind", port, vcpu))

    def bind_eventfd(self, port: Port, fd: int) -> None:
        self.told.append(("eventfd", port, fd))

    def forget(self, port: Port) -> None:
        self.told.append(("forget", port))

    def timer_changed(self, vcpu: VcpuId) -> None:
        self.told.append(("timer", vcpu))

    def stop(self) -> None:
        self.told.append(("stop",))


def test_kernel_is_told_of_ipis_timers_events_and_the_fifo_abi(domain: Domain) -> None:
    kernel = Kernel()
    events = channels(domain.vcpus, kernel=kernel)
    events.attach(Bytes(), Abi.X86_64)
    port = events.bind_ipi(1)
    timer = events.bind_virq(Virq.TIMER, 1)
    assert events.ipis() == [(port, 1)]
    assert (events.port_of_virq(Virq.TIMER, VcpuId(1)), events.port_of_virq(Virq.TIMER, VcpuId(0))) == (timer, None)
    events.deliver(timer)
    events.close(timer)
    events.close(port)
    events.init_control(0, Bytes())
    events.init_control(1, Bytes())
    assert [told for told in kernel.told if told != ("forget", timer)] == [
        ("bind", port, 1), ("timer", 1), ("timer", 1), ("forget", port), ("stop",),
    ]  # fmt: skip


def test_kernel_rings_a_back_end_until_either_end_closes(domain: Domain) -> None:
    kernel = Kernel()
    events = channels(domain.vcpus, kernel=kernel)
    for close in (lambda port, bell: events.disconnect(port, Backend(bell)), lambda port, bell: events.close(port)):
        port, bell = events.alloc_unbound(BACKEND), Bell(77)
        events.connect(port, BACKEND, bell)
        events.send(port)  # where the kernel does not
        close(port, bell)
        assert bell.rung == 1
        assert kernel.told == [("eventfd", port, 77), ("forget", port)]
        kernel.told.clear()
        if events.status(port):
            events.close(port)
            kernel.told.clear()


def test_a_back_end_that_lets_go_leaves_the_port_for_another() -> None:
    events = channels([Vcpu()])
    port, bell = events.alloc_unbound(BACKEND), Bell()
    events.connect(port, BACKEND, bell)
    events.disconnect(port, Backend(Bell()))  # not the one that is connected
    events.send(port)
    events.disconnect(port, Backend(bell))
    events.send(port)
    assert bell.rung == 1
    events.connect(port, BACKEND, bell)


def test_ports_run_out_with_enospc() -> None:
    events = channels([Vcpu()], limit=4)
    for _ in range(3):
        events.alloc_unbound(BACKEND)
    with refused(errno.ENOSPC):
        events.alloc_unbound(BACKEND)


@pytest.mark.parametrize(("abi", "mask_offset", "clock_offset"), [(Abi.X86_64, 0xA00, 0xC00), (Abi.X86_32, 0x880, 0x900)])
def test_layout_is_the_headers(abi: Abi, mask_offset: int, clock_offset: int) -> None:
    layout = TwoLevelLayout(abi)
    assert (layout.mask_offset, layout.wall_clock_offset) == (mask_offset, clock_offset)


@given(st.lists(st.tuples(st.sampled_from("aivsucbd"), st.integers(0, 70), st.integers(0, 3)), max_size=60))
def test_any_sequence_of_operations_ends_in_an_errno_or_works(steps: list[tuple[str, int, int]]) -> None:
    domain = Domain()
    events = domain.events
    for kind, port, vcpu in steps:
        try:
            match kind:
                case "a":
                    events.alloc_unbound(Domid(port % 2))
                case "i":
                    events.bind_ipi(vcpu)
                case "v":
                    events.bind_virq(port % 30, vcpu)
                case "s":
                    events.send(port)
                case "u":
                    events.unmask(port)
                case "c":
                    events.close(port)
                case "b":
                    events.bind_vcpu(port, vcpu)
                case "d":
                    events.bind_interdomain(domain.domid, port)
        except XenError as error:
            assert error.code in (errno.EINVAL, errno.ENOENT, errno.EEXIST, errno.ENOSPC)
    events.reset()
    assert events.alloc_unbound(BACKEND) == 1


def test_vcpu_without_info_gets_nothing_and_harms_nothing() -> None:
    vcpu = Vcpu()
    vcpu.info = None
    events = channels([vcpu])
    events.attach(Bytes(), Abi.X86_64)
    events.send(events.bind_ipi(0))
    assert vcpu.upcalls == 0


def waits(domain: Domain, ports: list[int]) -> bool:
    """Whether a vCPU that polls these ports has to wait."""
    return not domain.events.poll(domain.vcpus[0], ports, None).condition()


def test_poll_has_not_to_wait_for_a_pending_port_even_a_masked_one(domain: Domain) -> None:
    port = domain.events.bind_ipi(0)
    mask(domain, port)
    domain.events.send(port)
    assert domain.vcpus[0].upcalls == 0
    assert not waits(domain, [port])


def test_who_waits_is_stirred_by_each_event_and_then_no_more(domain: Domain) -> None:
    port = domain.events.bind_ipi(0)
    mask(domain, port)
    stirred = []
    assert waits(domain, [port])
    with domain.events.watched(lambda: stirred.append(True)):
        domain.events.send(port)
    assert not waits(domain, [port])
    domain.events.send(port)
    assert stirred == [True]


def test_poll_ends_for_any_upcall_to_take_and_says_until_when(domain: Domain) -> None:
    quiet, other = domain.events.bind_ipi(0), domain.events.bind_ipi(0)
    assert domain.events.poll(domain.vcpus[0], [quiet], 77).deadline_ns == 77
    assert waits(domain, [quiet])
    domain.events.send(other)
    assert not waits(domain, [quiet])


def test_poll_of_a_port_beyond_the_range_is_einval(domain: Domain) -> None:
    with refused(errno.EINVAL):
        domain.events.poll(domain.vcpus[0], [0], None)
    with refused(errno.EINVAL):
        domain.events.poll(domain.vcpus[0], [1 << 20], None)


def test_a_port_that_is_being_bound_to_another_domains_is_nobodys_until_that_has_agreed() -> None:
    hypervisor = Hypervisor()
    near, far = Domain(hypervisor=hypervisor), Domain(hypervisor=hypervisor)
    port = far.events.alloc_unbound(near.domid)
    seen: list[object] = []
    agree = far.events._connect_domain

    def meanwhile(*args: object) -> None:
        seen.extend(near.events.channels())
        near.events.close_all()
        agree(*args)  # type: ignore[arg-type]

    far.events._connect_domain = meanwhile  # type: ignore[method-assign]
    bound = near.events.bind_interdomain(far.domid, port)
    assert seen == []
    near.events.send(bound)
    assert pending(far, port)
    near.events.close(bound)
    channel = far.events.status(port)
    assert channel is not None
    assert channel.kind is EvtchnStatusKind.unbound


def test_a_refused_binding_leaves_no_port(domain: Domain) -> None:
    for _ in range(3):
        with refused(errno.EINVAL):
            domain.events.bind_interdomain(domain.domid, 77)
    assert domain.events.alloc_unbound(BACKEND) == 1


def test_a_32_bit_guest_that_takes_the_fifo_abi_has_all_of_its_ports() -> None:
    events = channels([Vcpu()])
    events.attach(Bytes(), Abi.X86_32)
    assert events.limit == 1024
    events.init_control(0, Bytes(128))
    assert events.limit == 4096
    events.reset()
    assert events.limit == 1024, "with the 2-level ABI again, as after a kexec"


def test_the_lowest_free_port_is_found_without_looking_at_all_of_them() -> None:
    events = channels([Vcpu()])
    ports = [events.alloc_unbound(BACKEND) for _ in range(4095)]
    assert ports == list(range(1, 4096))
    looked = Counter[str]()

    class Abi2:
        ports = 4096

        def is_busy(self, port: Port) -> bool:
            looked["busy"] += 1
            return False

        def clear(self, channel: object) -> None:
            pass

    events._abi = Abi2()  # type: ignore[assignment]
    for port in (4000, 77, 2000):
        events.close(port)
    assert [events.alloc_unbound(BACKEND) for _ in range(3)] == [77, 2000, 4000]
    assert looked["busy"] <= 6


STEPS = st.lists(st.tuples(st.sampled_from("aivsucbdpw"), st.integers(0, 40), st.integers(0, 3)), max_size=40)


def carry_out(domain: Domain, steps: list[tuple[str, int, int]]) -> list[int]:
    """What each step answers, -errno for a refusal."""
    events, found = domain.events, []
    for kind, port, vcpu in steps:
        try:
            match kind:
                case "a":
                    found.append(events.alloc_unbound(Domid(port % 2)))
                case "i":
                    found.append(events.bind_ipi(vcpu))
                case "v":
                    found.append(events.bind_virq(port % 30, vcpu))
                case "s":
                    events.send(port)
                case "u":
                    events.unmask(port)
                case "c":
                    events.close(port)
                case "b":
                    events.bind_vcpu(port, vcpu)
                case "d":
                    found.append(events.bind_interdomain(domain.domid, port))
                case "p":
                    events.set_priority(port, vcpu)
                case "w":
                    found.append(int(waits(domain, [port])))
        except XenError as error:
            found.append(-error.code)
    return found


class Ram:
    """The pages that a guest has given to its FIFO ABI."""

    def __init__(self) -> None:
        self.pieces: dict[int, Bytes] = {}

    def shared(self, gpa: Gpa, size_bytes: int) -> Bytes:
        return self.pieces.setdefault(gpa, Bytes(size_bytes, gpa))

    def copy(self) -> "Ram":
        other = Ram()
        for gpa, piece in self.pieces.items():
            other.shared(Gpa(gpa), len(piece.data)).write(0, bytes(piece.data))
        return other


@given(before=STEPS, after=STEPS, fifo=st.booleans())
def test_ports_that_are_given_out_and_taken_back_answer_as_before(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], fifo: bool
) -> None:
    first, memory = Domain(), Ram()
    if fifo:
        for vcpu in (0, 1):
            first.events.init_control(vcpu, memory.shared(Gpa(0x1000 + 0x100 * vcpu), 128))
        first.events.expand_array(memory.shared(Gpa(0x4000), 4096))
    carry_out(first, before)
    second, copied = Domain(), memory.copy()
    second.shared_info.write(0, bytes(first.shared_info.data))
    for mine, theirs in zip(second.vcpus, first.vcpus, strict=True):
        assert mine.info is not None
        assert theirs.info is not None
        mine.info.write(0, bytes(theirs.info.data))
        mine.upcalls = theirs.upcalls
    second.events.restore(first.events.record(), copied)  # type: ignore[arg-type]
    assert second.events.record() == first.events.record()
    assert carry_out(second, after) == carry_out(first, after)
    assert second.events.record() == first.events.record()
    assert bytes(second.shared_info.data) == bytes(first.shared_info.data)
    assert {gpa: bytes(piece.data) for gpa, piece in copied.pieces.items()} == {
        gpa: bytes(piece.data) for gpa, piece in memory.pieces.items()
    }
    assert [vcpu.upcalls for vcpu in second.vcpus] == [vcpu.upcalls for vcpu in first.vcpus]
