"""What the C loop answers by itself: nothing that Python would answer otherwise, and nothing outside the guest's RAM."""

import os
import select
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.properties  # noqa: F401
from vmm.kvm import EventTable, HostMemory, System, VmFd, allow_kicks
from vmm.kvm._native import ffi, lib
from vmm.kvm.vcpu import KICK_SIGNAL
from vmm.machine.memory.paging import CR0_PG, CR4_LA57, EFER_LMA, PageFault, translate

RAM_BYTES = 1 << 16
RAM_START = 0x10000  # so that addresses below RAM exist
PORT, VCPU_ID = 0xE6, 3
VCPU_OP, SET_SINGLESHOT_TIMER, EVENT_CHANNEL_OP, SEND = 24, 8, 32, 4
TABLES = [RAM_START + 0x1000 * index for index in range(4)]
ARGUMENT = RAM_START + 0x8000
LINEAR = 0xFFFF_8000_0000_0000
SOON, NEVER = 1, (1 << 64) - 1


class Loop:
    """The loop's own state, and an exit for it to look at."""

    def __init__(self) -> None:
        self.system = System()
        self.vm: VmFd = self.system.create_vm()
        self.host = HostMemory(RAM_BYTES)
        allow_kicks()
        self.state: Any = ffi.new("struct pyvmm_loop *")
        signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})
        self.state.signal = KICK_SIGNAL
        assert lib.pyvmm_own_timer(self.state) == 0
        self.state.vm_fd, self.state.port, self.state.vcpu_id = self.vm.fd, PORT, VCPU_ID
        self.state.ram[0].start, self.state.ram[0].end = RAM_START, RAM_START + RAM_BYTES
        self.state.ram[0].host = self.host.address

    def prepare(self, entries: list[int], argument: bytes, at: int = ARGUMENT) -> Any:
        """A machine whose tables map LINEAR to ARGUMENT but for what `entries` say, at a matching exit."""
        lib.pyvmm_arm_own(self.state, 0)
        lib.pyvmm_take_signal(self.state)
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
        while not (due := lib.pyvmm_take_signal(self.state)) and time.monotonic() < deadline:
            time.sleep(0.001)
        return bool(due)


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
