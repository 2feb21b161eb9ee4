"""Events that the C loop raises: as Python does, over both ABIs."""

import os
import select
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakes import Vcpu as FakeVcpu
from tests.unit.fakes import channels, loop_sends
from vmm.kvm import PAGE_BYTES, EventTable, HostMemory
from vmm.kvm._native import ffi, lib
from vmm.machine.memory.guest import SharedBytes
from vmm.xenabi.constants import Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.evtchn_abi import CONTROL_BLOCK_BYTES
from vmm.xenabi.values import Domid, Port

EVENT_PAGE, BLOCK, SHARED, INFO, EVENT_BYTES = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000


class Way(NamedTuple):
    """How an event comes to be raised in the loop: which kind of port, and what calls for it."""

    bind: Callable[[EventChannels], Port]
    in_loop: Callable[[EventTable, Port], bool]


def _timer_comes(table: EventTable, port: Port) -> bool:
    state: Any = ffi.new("struct pyvmm_loop *")
    state.events, state.timer_port, state.deadline_ns = table.pointer, port, 5
    done = bool(lib.pyvmm_raise_timer(state))
    assert (state.deadline_ns, state.raised) == (0, done)
    return done


WAYS = {
    "an IPI": Way(lambda events: events.bind_ipi(0), loop_sends),
    "the timer": Way(lambda events: events.bind_virq(Virq.TIMER, 0), _timer_comes),
}


class Machine:
    """One vCPU's event channels over memory with a given content."""

    def __init__(self, host: HostMemory, way: Way, port: int, priority: int | None) -> None:
        """`priority`: of the FIFO ABI; None for the 2-level one."""
        self.host, self.way = host, way
        self.vcpu, self.table = FakeVcpu(0), EventTable(1)
        self.vcpu.info = SharedBytes(host, INFO, 64)  # type: ignore[assignment]
        self.events = channels([self.vcpu], self.table)
        while (port := port - 1) > 0:
            self.events.alloc_unbound(Domid(0))
        content = bytes(host.view[:EVENT_BYTES])
        host.view[:EVENT_BYTES] = bytes(EVENT_BYTES)
        self.events.attach(SharedBytes(host, SHARED, PAGE_BYTES), Abi.X86_64)
        self.port = way.bind(self.events)
        if priority is not None:
            self.events.init_control(0, SharedBytes(host, BLOCK, CONTROL_BLOCK_BYTES))
            self.events.expand_array(SharedBytes(host, EVENT_PAGE, PAGE_BYTES))
            self.events.set_priority(self.port, priority)
        host.view[:EVENT_BYTES] = content
        self.vcpu.upcalls = 0

    def by_the_loop(self) -> tuple[bytes, bool]:
        told = os.eventfd(0, os.EFD_NONBLOCK)
        self.table.place_info(0, self.host.address + INFO)
        self.table.interrupt_by(0, told)
        assert self.way.in_loop(self.table, self.port)
        rang = bool(select.select([told], [], [], 0)[0])
        os.close(told)
        return bytes(self.host.view[:EVENT_BYTES]), rang

    def by_python(self) -> tuple[bytes, bool]:
        self.events.deliver(self.port)
        return bytes(self.host.view[:EVENT_BYTES]), self.vcpu.upcalls > 0


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@settings(deadline=None)
@given(
    port=st.integers(1, 1000),
    priority=st.none() | st.integers(0, 15),
    word=st.integers(0, 2**32 - 1) | st.sampled_from([0, 1 << 31, 1 << 30, 1 << 29, 7 << 29, 0x1FFFF]),
    bits=st.tuples(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**64 - 1, 0xF0F0])),
    block=st.binary(min_size=CONTROL_BLOCK_BYTES, max_size=CONTROL_BLOCK_BYTES),
    info=st.binary(min_size=64, max_size=64),
)
def test_the_loop_raises_events_as_python_does(
    way: Way, port: int, priority: int | None, word: int, bits: tuple[int, int], block: bytes, info: bytes
) -> None:
    left = []
    for raise_it in (Machine.by_the_loop, Machine.by_python):
        host = HostMemory(EVENT_BYTES)
        struct.pack_into("<I", host.view, EVENT_PAGE + 4 * port, word)
        for offset, part in zip((2048, 2048 + 512), bits, strict=True):
            struct.pack_into("<Q", host.view, SHARED + offset + port // 64 * 8, part)
        host.view[BLOCK : BLOCK + CONTROL_BLOCK_BYTES] = block
        host.view[INFO : INFO + 64] = info
        left.append(raise_it(Machine(host, way, port, priority)))
        host.close()
    assert left[0] == left[1]


def test_a_timer_whose_event_is_not_the_loops_goes_to_python() -> None:
    host = HostMemory(EVENT_BYTES)
    machine = Machine(host, WAYS["the timer"], 3, 0)
    assert not _timer_comes(machine.table, machine.port)  # the vCPU has no vector yet
    assert _timer_comes(machine.table, Port(0))  # not armed
    host.close()
