"""Event channels over the FIFO ABI, with a guest's side that takes events as Linux does."""

import errno
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Bell, Bytes, Domain, loop_sends
from vmm.xenabi.constants import Virq
from vmm.xenabi.evtchn_abi import CONTROL_BLOCK_BYTES, LINK_BITS
from vmm.xenabi.values import Domid, Port, XenError

PENDING, MASKED, LINKED = 1 << 31, 1 << 30, 1 << 29
LINK = (1 << LINK_BITS) - 1
BACKEND = Domid(0)


class Guest:
    """A domain that has chosen FIFO, and the guest's half of the protocol."""

    def __init__(self, vcpus: int = 2) -> None:
        self.domain = Domain(vcpus)
        self.events = self.domain.events
        self.blocks = [Bytes(CONTROL_BLOCK_BYTES) for _ in range(vcpus)]
        self.words = Bytes()
        self.heads = [[0] * 16 for _ in range(vcpus)]
        for vcpu, block in enumerate(self.blocks):
            self.events.init_control(vcpu, block)
        self.events.expand_array(self.words)

    def word(self, port: int) -> int:
        return int(struct.unpack_from("<I", self.words.data, port * 4)[0])

    def set_word(self, port: int, value: int) -> None:
        struct.pack_into("<I", self.words.data, port * 4, value)

    def port(self, vcpu: int = 0, priority: int = 7) -> Port:
        port = self.events.alloc_unbound(BACKEND)
        self.events.bind_vcpu(port, vcpu)
        self.events.set_priority(port, priority)
        return port

    def take(self, vcpu: int) -> list[int]:
        """Take every event, by priority, as the guest's upcall handler does."""
        taken = []
        block = self.blocks[vcpu]
        ready = struct.unpack_from("<I", block.data)[0]
        struct.pack_into("<I", block.data, 0, 0)
        for priority in range(16):
            if not ready >> priority & 1:
                continue
            head = self.heads[vcpu][priority] or struct.unpack_from("<I", block.data, 8 + 4 * priority)[0]
            while head:
                word = self.word(head)
                following = word & LINK
                self.set_word(head, word & ~(LINKED | LINK))
                if word & PENDING and not word & MASKED:
                    self.set_word(head, self.word(head) & ~PENDING)
                    taken.append(head)
                head = following
            self.heads[vcpu][priority] = 0
        return taken


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_events_are_taken_in_the_order_sent(guest: Guest) -> None:
    ports = [guest.port() for _ in range(4)]
    for port in (ports[2], ports[0], ports[3], ports[2]):
        guest.events.deliver(port)
    assert guest.take(0) == [ports[2], ports[0], ports[3]]
    guest.events.deliver(ports[1])
    assert guest.take(0) == [ports[1]]


def test_higher_priorities_come_first(guest: Guest) -> None:
    low, high = guest.port(priority=15), guest.port(priority=0)
    guest.events.deliver(low)
    guest.events.deliver(high)
    assert guest.take(0) == [high, low]


def test_each_vcpu_has_its_own_queues(guest: Guest) -> None:
    here, there = guest.port(vcpu=0), guest.port(vcpu=1)
    guest.events.deliver(here)
    guest.events.deliver(there)
    assert guest.take(1) == [there]
    assert guest.take(0) == [here]
    assert guest.domain.vcpus[1].upcalls == 1


def test_masked_event_waits_for_its_unmask(guest: Guest) -> None:
    port = guest.port()
    guest.set_word(port, MASKED)
    guest.events.deliver(port)
    assert guest.domain.vcpus[0].upcalls == 0
    assert guest.take(0) == []
    guest.events.unmask(port)
    assert guest.take(0) == [port]


def test_event_raised_before_its_word_exists_is_delivered_with_the_page(guest: Guest) -> None:
    domain = Domain(1)
    port = domain.events.alloc_unbound(BACKEND)
    domain.events.deliver(port)
    words = Bytes()
    domain.events.init_control(0, Bytes(CONTROL_BLOCK_BYTES))
    domain.events.expand_array(words)
    assert struct.unpack_from("<I", words.data, port * 4)[0] & (PENDING | LINKED) == PENDING | LINKED


def test_port_that_is_still_queued_is_not_given_again(guest: Guest) -> None:
    port = guest.port()
    guest.events.deliver(port)
    guest.events.close(port)
    assert guest.events.alloc_unbound(BACKEND) != port
    assert guest.take(0) == []
    assert guest.events.alloc_unbound(BACKEND) == port


def test_port_that_moves_between_vcpus_does_not_take_its_old_queue_along(guest: Guest) -> None:
    mover, stayer = guest.port(vcpu=0), guest.port(vcpu=0)
    guest.events.deliver(mover)
    assert guest.take(0) == [mover]
    guest.events.bind_vcpu(mover, 1)
    guest.events.deliver(mover)
    guest.events.deliver(stayer)
    assert guest.take(1) == [mover]
    assert guest.take(0) == [stayer]


def test_wrong_uses_are_refused(guest: Guest) -> None:
    with pytest.raises(XenError, check=lambda error: error.code == errno.EINVAL):
        guest.events.init_control(0, Bytes())
    with pytest.raises(XenError, check=lambda error: error.code == errno.ENOENT):
        guest.events.init_control(9, Bytes())
    with pytest.raises(XenError, check=lambda error: error.code == errno.EINVAL):
        guest.events.set_priority(guest.port(), 16)
    for _ in range(127):
        guest.events.expand_array(Bytes())
    with pytest.raises(XenError, check=lambda error: error.code == errno.ENOSPC):
        guest.events.expand_array(Bytes())


def test_reset_goes_back_to_two_levels(guest: Guest) -> None:
    guest.events.reset()
    with pytest.raises(XenError, check=lambda error: error.code == errno.ENOSYS):
        guest.events.set_priority(guest.events.alloc_unbound(BACKEND), 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_no_event_is_lost_or_taken_twice(steps: list[tuple[int, bool]]) -> None:
    guest = Guest()
    ports = [guest.port(vcpu=index % 2, priority=index) for index in range(6)]
    sent: set[int] = set()
    for index, take in steps:
        guest.events.deliver(ports[index])
        sent.add(ports[index])
        if take:
            vcpu = index % 2
            expected = {port for port in sent if ports.index(Port(port)) % 2 == vcpu}
            taken = guest.take(vcpu)
            assert sorted(taken) == sorted(expected)
            sent -= expected
    assert sorted(guest.take(0) + guest.take(1)) == sorted(sent)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from("ducw")), max_size=60),
    st.binary(min_size=CONTROL_BLOCK_BYTES, max_size=CONTROL_BLOCK_BYTES),
)
def test_a_guest_that_scribbles_over_its_queues_harms_only_itself(steps: list[tuple[int, int, str]], block: bytes) -> None:
    guest = Guest()
    for index in range(6):
        guest.port(vcpu=index % 2)
    guest.blocks[0].data[:] = block
    for port, value, kind in steps:
        try:
            match kind:
                case "d":
                    guest.events.deliver(Port(port))
                case "u":
                    guest.events.unmask(port)
                case "c":
                    guest.events.close(port)
                case "w":
                    guest.set_word(port, value)
        except XenError as error:
            assert error.code == errno.EINVAL


# ------------------------------------------------------------------------- what vCPUs do by themselves


def placed(guest: Guest, vcpu: int) -> int:
    """A vCPU that can be interrupted without Python: the eventfd that tells it."""
    told, info = os.eventfd(0, os.EFD_NONBLOCK), guest.domain.vcpus[vcpu].info
    assert info is not None
    guest.domain.event_table.place_info(vcpu, info.address)
    guest.domain.event_table.interrupt_by(vcpu, told)
    return told


@pytest.fixture
def told(guest: Guest) -> Iterator[int]:
    """The eventfd of vCPU 1."""
    fd = placed(guest, 1)
    yield fd
    os.close(fd)


def was_told(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def test_an_ipi_is_queued_behind_what_python_has_raised(guest: Guest, told: int) -> None:
    first, ipi, last = guest.port(vcpu=1), guest.events.bind_ipi(1), guest.port(vcpu=1)
    guest.events.deliver(first)
    assert loop_sends(guest.domain.event_table, ipi)
    guest.events.deliver(last)
    assert was_told(told)
    assert guest.take(1) == [first, ipi, last]


def test_an_ipi_is_python_s_until_its_vcpu_can_be_interrupted(guest: Guest) -> None:
    ipi = guest.events.bind_ipi(1)
    assert not loop_sends(guest.domain.event_table, ipi)
    os.close(placed(guest, 1))
    assert loop_sends(guest.domain.event_table, ipi)


def test_an_ipi_is_python_s_while_somebody_waits_there(guest: Guest, told: int) -> None:
    ipi = guest.events.bind_ipi(1)
    seen = []

    with guest.events.watched(lambda: seen.append(True)):
        assert not loop_sends(guest.domain.event_table, ipi)
        guest.events.send(ipi)
    assert seen == [True]
    assert loop_sends(guest.domain.event_table, ipi)


def test_only_ipis_and_bells_are_sent_without_python(guest: Guest, told: int) -> None:
    table = guest.domain.event_table
    timer, unbound = guest.events.bind_virq(Virq.TIMER, 1), guest.events.alloc_unbound(BACKEND)
    assert not any(loop_sends(table, port) for port in (timer, unbound, Port(0), Port(4095), Port(4096), Port(2**32 - 1)))
    with os.fdopen(os.eventfd(0, os.EFD_NONBLOCK), "rb") as bell:
        guest.events.connect(unbound, BACKEND, Bell(bell.fileno()))
        assert loop_sends(table, unbound)
        assert was_told(bell.fileno())
        guest.events.close(unbound)
        assert not loop_sends(table, unbound)


def test_a_closed_ipi_is_not_sent(guest: Guest, told: int) -> None:
    ipi = guest.events.bind_ipi(1)
    guest.events.close(ipi)
    assert not loop_sends(guest.domain.event_table, ipi)
    again = guest.events.bind_ipi(1)
    guest.events.reset()
    assert not loop_sends(guest.domain.event_table, again)


def test_an_ipi_takes_the_priority_that_it_is_given(guest: Guest, told: int) -> None:
    low, high = guest.port(vcpu=1, priority=3), guest.events.bind_ipi(1)
    guest.events.set_priority(high, 2)
    guest.events.deliver(low)
    assert loop_sends(guest.domain.event_table, high)
    assert guest.take(1) == [high, low]


def test_no_event_is_lost_between_threads_that_fill_one_queue(guest: Guest, told: int) -> None:
    table, ipis = guest.domain.event_table, [guest.events.bind_ipi(1) for _ in range(8)]
    taken: Counter[int] = Counter()

    def send(ports: list[Port]) -> None:
        for _ in range(400):
            for port in ports:
                assert loop_sends(table, port)

    threads = [threading.Thread(target=send, args=(ipis[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.update(guest.take(1))
    assert sorted(taken) == sorted(ipis)
