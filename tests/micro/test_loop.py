"""What the C loop answers by itself: nothing that Python would answer otherwise, and nothing outside the guest's RAM."""

import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakes import Vcpu as FakeVcpu
from vmm.kvm import PAGE_BYTES, EventTable, HostMemory, System, Vm, allow_kicks
from vmm.kvm._native import ffi, lib
from vmm.kvm.vcpu import KICK_SIGNAL
from vmm.memory import SharedBytes
from vmm.paging import CR0_PG, CR4_LA57, EFER_LMA, PageFault, translate
from vmm.xenabi.constants import Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.evtchn_abi import CONTROL_BLOCK_BYTES
from vmm.xenabi.interfaces import Domid, Port

RAM_BYTES = 1 << 16
RAM_START = 0x10000  # so that addresses below RAM exist
PORT, VCPU_ID = 0xE6, 3
VCPU_OP, SET_SINGLESHOT_TIMER = 24, 8
TABLES = [RAM_START + 0x1000 * index for index in range(4)]
ARGUMENT = RAM_START + 0x8000
LINEAR = 0xFFFF_8000_0000_0000
SOON, NEVER = 1, (1 << 64) - 1


class Loop:
    """The loop's own state, and an exit for it to look at."""

    def __init__(self) -> None:
        self.system = System()
        self.vm: Vm = self.system.create_vm()
        self.host = HostMemory(RAM_BYTES)
        allow_kicks()
        self.state: Any = ffi.new("struct pyvmm_loop *")
        self.run: Any = ffi.new("struct kvm_run *")
        assert lib.pyvmm_own_timer(self.state, self.run, KICK_SIGNAL) == 0
        self.state.vm_fd, self.state.port, self.state.vcpu_id = self.vm.fd, PORT, VCPU_ID
        self.state.ram[0].start, self.state.ram[0].end = RAM_START, RAM_START + RAM_BYTES
        self.state.ram[0].host = self.host.address

    def prepare(self, entries: list[int], argument: bytes, at: int = ARGUMENT) -> Any:
        """A machine whose tables map LINEAR to ARGUMENT but for what `entries` say, at a matching exit."""
        lib.pyvmm_arm_own(self.state, 0)
        self.state.due, self.state.answers, self.state.timer_port, self.state.python_after_ns = 0, 1, 1, NEVER
        self.host.view[:] = bytes(RAM_BYTES)
        for table, entry, index in zip(TABLES, entries, (LINEAR >> 39 & 0x1FF, 0, 0, 0), strict=True):
            struct.pack_into("<Q", self.host.view, table - RAM_START + 8 * index, entry)
        self.write(at, argument)
        run: Any = ffi.new("struct kvm_run *")
        run.exit_reason = lib.KVM_EXIT_IO
        run.io.port, run.io.direction, run.io.size, run.io.count = PORT, lib.KVM_EXIT_IO_OUT, 1, 1
        regs, sregs = run.s.regs.regs, run.s.regs.sregs
        regs.rax, regs.rdi, regs.rsi, regs.rdx = VCPU_OP, SET_SINGLESHOT_TIMER, VCPU_ID, LINEAR
        sregs.cs.l, sregs.cr0, sregs.cr3, sregs.efer = 1, CR0_PG | 1, TABLES[0], EFER_LMA
        return run

    def write(self, gpa: int, data: bytes) -> None:
        if gpa >= RAM_START and gpa + len(data) <= RAM_START + RAM_BYTES:
            self.host.view[gpa - RAM_START : gpa - RAM_START + len(data)] = data

    def read(self, gpa: int, size_bytes: int) -> bytes:
        if gpa < RAM_START or gpa + size_bytes > RAM_START + RAM_BYTES:
            raise PageFault(gpa)
        return bytes(self.host.view[gpa - RAM_START : gpa - RAM_START + size_bytes])

    def armed(self) -> bool:
        deadline = time.monotonic() + 1
        while not self.state.due and time.monotonic() < deadline:
            time.sleep(0.001)
        return bool(self.state.due)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    lib.timer_delete(made.state.timer)
    made.host.close()
    made.vm.close()
    made.system.close()


def straight() -> list[int]:
    return [TABLES[1] | 1, TABLES[2] | 1, TABLES[3] | 1, ARGUMENT | 1]


def argument(deadline_ns: int = SOON, flags: int = 0) -> bytes:
    return struct.pack("<QII", deadline_ns, flags, 0)


def test_the_loop_sets_the_timer_and_answers_0(loop: Loop) -> None:
    run = loop.prepare(straight(), argument())
    before = loop.state.answered
    assert lib.pyvmm_answer(run, loop.state) == 1
    assert run.s.regs.regs.rax == 0
    assert run.kvm_dirty_regs & lib.KVM_SYNC_X86_REGS
    assert loop.state.answered == before + 1
    assert loop.armed()


def test_the_loop_answers_what_kvm_xen_hands_on(loop: Loop) -> None:
    run = loop.prepare(straight(), argument())
    run.exit_reason, hcall = lib.KVM_EXIT_XEN, run.xen.u.hcall
    hcall.longmode, hcall.cpl, hcall.input, hcall.result = 1, 0, VCPU_OP, 77
    hcall.params = [SET_SINGLESHOT_TIMER, VCPU_ID, LINEAR, 0, 0, 0]
    assert lib.pyvmm_answer(run, loop.state) == 1
    assert hcall.result == 0
    assert loop.armed()
    hcall.cpl = 3
    assert lib.pyvmm_answer(run, loop.state) == 0


DECLINED = {
    "another hypercall": lambda run, state: setattr(run.s.regs.regs, "rax", 23),
    "another command": lambda run, state: setattr(run.s.regs.regs, "rdi", 9),
    "another vCPU": lambda run, state: setattr(run.s.regs.regs, "rsi", VCPU_ID + 1),
    "another port": lambda run, state: setattr(run.io, "port", PORT + 1),
    "an IN": lambda run, state: setattr(run.io, "direction", lib.KVM_EXIT_IO_IN),
    "user code": lambda run, state: setattr(run.s.regs.sregs.ss, "dpl", 3),
    "a 32-bit caller": lambda run, state: setattr(run.s.regs.sregs.cs, "l", 0),
    "five levels": lambda run, state: setattr(run.s.regs.sregs, "cr4", CR4_LA57),
    "a page's end": lambda run, state: setattr(run.s.regs.regs, "rdx", LINEAR + 0xFF8),
    "not canonical": lambda run, state: setattr(run.s.regs.regs, "rdx", 1 << 47),
    "a loop that may not": lambda run, state: setattr(state, "answers", 0),
    "a timer that is Python's": lambda run, state: setattr(state, "timer_port", 0),
    "a deadline that is Python's": lambda run, state: setattr(state, "python_after_ns", 0),
    "another exit": lambda run, state: setattr(run, "exit_reason", lib.KVM_EXIT_HLT),
}


@pytest.mark.parametrize("what", DECLINED)
def test_the_loop_leaves_anything_else_to_python(loop: Loop, what: str) -> None:
    run = loop.prepare(straight(), argument())
    DECLINED[what](run, loop.state)
    before = run.s.regs.regs.rax
    assert lib.pyvmm_answer(run, loop.state) == 0
    assert run.s.regs.regs.rax == before
    assert not run.kvm_dirty_regs


def test_the_loop_leaves_flags_to_python(loop: Loop) -> None:
    assert lib.pyvmm_answer(loop.prepare(straight(), argument(flags=1)), loop.state) == 0


entry = st.one_of(
    st.sampled_from([*TABLES, ARGUMENT, RAM_START + RAM_BYTES - 0x1000, RAM_START + RAM_BYTES, 0, 1 << 51]).flatmap(
        lambda gpa: st.sampled_from([gpa, gpa | 1, gpa | 0x81, gpa | 1 | 1 << 63])
    ),
    st.integers(0, NEVER),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_loop_walks_hostile_page_tables_as_python_does(loop: Loop, data: st.DataObject) -> None:
    entries = [data.draw(st.one_of(st.just(right), entry)) for right in straight()]
    linear = LINEAR + data.draw(st.integers(0, 0x3FF_FFFF))
    run = loop.prepare(entries, argument())
    run.s.regs.regs.rdx = linear
    run.s.regs.sregs.cr3 = data.draw(st.one_of(st.just(TABLES[0]), entry))
    try:
        gpa, room = translate(loop, run.s.regs.sregs, linear, write=False)
        expected = loop.read(gpa, 16) if room >= 16 else None
    except PageFault:
        expected = None
    answered = lib.pyvmm_answer(run, loop.state)
    assert not answered or (expected is not None and expected[8:12] == bytes(4))
    if expected is not None and expected[8:12] == bytes(4):
        assert answered


# ------------------------------------------------------------------------------------------- events

EVENT_CHANNEL_OP, SEND = 32, 4
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
    "an IPI": Way(lambda events: events.bind_ipi(0), lambda table, port: table.send(port)),
    "the timer": Way(lambda events: events.bind_virq(Virq.TIMER, 0), _timer_comes),
}


class Machine:
    """One vCPU's event channels over memory with a given content."""

    def __init__(self, host: HostMemory, way: Way, port: int, priority: int | None) -> None:
        """`priority`: of the FIFO ABI; None for the 2-level one."""
        self.host, self.way = host, way
        self.vcpu, self.table = FakeVcpu(0), EventTable(1)
        self.vcpu.info = SharedBytes(host, INFO, 64)  # type: ignore[assignment]
        self.events = EventChannels([self.vcpu], self.table)
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


def test_the_loop_answers_a_send(loop: Loop) -> None:
    table, bell = EventTable(1), os.eventfd(0, os.EFD_NONBLOCK)
    loop.state.events = table.pointer
    for port, sent in ((9, True), (8, False), (4096, False), (9 + 4096, False), (2**32 - 1, False)):
        table.rings(9, bell)
        run = loop.prepare(straight(), struct.pack("<I", port))
        regs = run.s.regs.regs
        regs.rax, regs.rdi, regs.rsi, regs.rdx = EVENT_CHANNEL_OP, SEND, LINEAR, 0
        assert bool(lib.pyvmm_answer(run, loop.state)) is sent
        assert regs.rax == (0 if sent else EVENT_CHANNEL_OP)
        assert bool(select.select([bell], [], [], 0)[0]) is sent
        if sent:
            os.eventfd_read(bell)
    os.close(bell)
    loop.state.events = ffi.NULL


def test_the_loop_leaves_a_send_without_a_table_or_an_address_to_python(loop: Loop) -> None:
    run = loop.prepare(straight(), struct.pack("<I", 9))
    regs = run.s.regs.regs
    regs.rax, regs.rdi, regs.rsi = EVENT_CHANNEL_OP, SEND, 0x1234
    assert not lib.pyvmm_answer(run, loop.state)
    regs.rsi = LINEAR
    assert not lib.pyvmm_answer(run, loop.state)
