"""A vCPU's descriptor: entering the guest, and its registers.

The run area is shared with the kernel.  Only the thread that calls `enter` may use it; other threads call `kick`.
"""

import errno
import mmap
import os
import signal
import threading
from enum import IntEnum, IntFlag
from typing import Any

from vmm.kvm._native import ffi, lib
from vmm.kvm.errors import KvmError, ioctl
from vmm.kvm.events import EventTable

KICK_SIGNAL = signal.SIGRTMIN + 3
_SIGSET_BYTES = 8
_SVR = 0xF0
_LVT0_OFFSET, _LVT_MODE_AND_MASK, _LVT_EXTINT = 0x350, 1 << 16 | 7 << 8, 7 << 8


class Exit(IntEnum):
    """Why KVM_RUN came back; INTERRUPTED is a kick, INIT_TAKEN a waiting application processor that got its INIT,
    TIMER_DUE a timer of the C loop's whose event is not the loop's to raise."""

    INTERRUPTED = -errno.EINTR
    INIT_TAKEN = -errno.EAGAIN
    TIMER_DUE = -errno.ETIME
    UNKNOWN = lib.KVM_EXIT_UNKNOWN
    EXCEPTION = lib.KVM_EXIT_EXCEPTION
    IO = lib.KVM_EXIT_IO
    HYPERCALL = lib.KVM_EXIT_HYPERCALL
    DEBUG = lib.KVM_EXIT_DEBUG
    HLT = lib.KVM_EXIT_HLT
    MMIO = lib.KVM_EXIT_MMIO
    IRQ_WINDOW_OPEN = lib.KVM_EXIT_IRQ_WINDOW_OPEN
    SHUTDOWN = lib.KVM_EXIT_SHUTDOWN
    FAIL_ENTRY = lib.KVM_EXIT_FAIL_ENTRY
    INTR = lib.KVM_EXIT_INTR
    INTERNAL_ERROR = lib.KVM_EXIT_INTERNAL_ERROR
    SYSTEM_EVENT = lib.KVM_EXIT_SYSTEM_EVENT
    IOAPIC_EOI = lib.KVM_EXIT_IOAPIC_EOI
    X86_RDMSR = lib.KVM_EXIT_X86_RDMSR
    X86_WRMSR = lib.KVM_EXIT_X86_WRMSR
    XEN = lib.KVM_EXIT_XEN


class MpState(IntEnum):
    """KVM_SET_MP_STATE's states."""

    RUNNABLE = lib.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = lib.KVM_MP_STATE_UNINITIALIZED
    HALTED = lib.KVM_MP_STATE_HALTED


class GuestDebug(IntFlag):
    """KVM_SET_GUEST_DEBUG's control."""

    ENABLE = lib.KVM_GUESTDBG_ENABLE
    SINGLESTEP = lib.KVM_GUESTDBG_SINGLESTEP
    BLOCKIRQ = lib.KVM_GUESTDBG_BLOCKIRQ
    USE_SW_BP = lib.KVM_GUESTDBG_USE_SW_BP
    USE_HW_BP = lib.KVM_GUESTDBG_USE_HW_BP
    INJECT_DB = lib.KVM_GUESTDBG_INJECT_DB
    INJECT_BP = lib.KVM_GUESTDBG_INJECT_BP


SS_DPL, CS_L = (
    ffi.offsetof("struct kvm_sregs", segment) + ffi.offsetof("struct kvm_segment", field)
    for segment, field in (("ss", "dpl"), ("cs", "l"))
)
"""Where `VcpuFd.modes` has the guest's privilege level, and whether its code is 64-bit."""
_REGS: int = lib.KVM_SYNC_X86_REGS
_ASKED_FOR = (Exit.INTERRUPTED, Exit.INIT_TAKEN, Exit.TIMER_DUE)


def allow_kicks() -> None:
    """Install the kick signal's handler; once a process is enough, again does no harm."""
    result = lib.pyvmm_install_kick(KICK_SIGNAL)
    if result < 0:
        raise KvmError("signal", -result)


class VcpuFd:
    """One vCPU.  `run` is struct kvm_run; `regs` and `sregs` are its registers, valid after each exit.

    Reading both costs nothing measurable beside the exit; an ioctl costs as much as one.
    Change a general register in place and call `regs_changed`: KVM takes it over at the next entry.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int) -> None:
        self.fd = fd
        self.id = vcpu_id
        self._area = mmap.mmap(fd, mmap_size)
        self._buffer = ffi.from_buffer(self._area)
        self.run = ffi.cast("struct kvm_run *", self._buffer)
        self.regs = self.run.s.regs.regs
        self.sregs = self.run.s.regs.sregs
        self.run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS
        self._start = int(ffi.cast("uintptr_t", self.run))
        whole = memoryview(self._area)
        self.words = self._part(whole, self.regs).cast("Q")
        """`regs` once more, as numbers in the order of struct kvm_regs: a cffi field takes ten times as long to read."""
        self.modes = self._part(whole, self.sregs)
        """`sregs` once more, as bytes."""
        self.port = self._part(whole, self.run.io).cast("I")
        """`run.io` once more, as 32-bit words."""
        dirty = ffi.offsetof("struct kvm_run", "kvm_dirty_regs")
        self._dirty = whole[dirty : dirty + 8].cast("Q")
        self._views = [self.words, self.modes, self.port, self._dirty, whole]
        self._loop = ffi.new("struct pyvmm_loop *")
        self._events: EventTable | None = None
        self._lapic: Any = ffi.new("struct kvm_lapic_state *")
        self._lvt0 = ffi.cast("uint32_t *", self._lapic.regs + _LVT0_OFFSET)
        self._thread: int | None = None
        self._claim = threading.Lock()

    def _part(self, whole: memoryview, struct: Any) -> memoryview:
        start = int(ffi.cast("uintptr_t", ffi.addressof(struct))) - self._start
        return whole[start : start + ffi.sizeof(struct)]

    def enter(self) -> int:
        """KVM_RUN: run the guest until it needs an answer; an `Exit`.  KvmError where KVM gives up."""
        reason: int = lib.pyvmm_enter(self.fd, self.run, self._loop)
        if reason < 0 and reason not in _ASKED_FOR:
            raise KvmError("KVM_RUN", -reason)
        return reason

    def describe_loop(
        self, vm_fd: int, xen_vcpu_id: int, port: int, ram: list[tuple[int, int, int]], events: EventTable
    ) -> None:
        """What the C loop must know to answer hypercalls by itself: the machine's descriptor, the number by which the guest
        names this vCPU, the port of its hypercalls, its first stretches of RAM (start, end, host address), its events."""
        loop, self._events = self._loop, events
        loop.vm_fd, loop.vcpu_id, loop.port, loop.events = vm_fd, xen_vcpu_id, port, events.pointer
        for row, stretch in zip(loop.ram, ram, strict=False):
            row.start, row.end, row.host = stretch

    def let_loop_answer(self, *, able: bool, python_after_ns: int) -> None:
        """Whether the C loop answers hypercalls, timers being set up to a deadline in guest time."""
        self._loop.python_after_ns, self._loop.answers = python_after_ns, able

    def let_loop_raise(self, port: int) -> bool:
        """Let the C loop set the timer and raise its event at this port (0: no); whether it does.  In its own thread."""
        loop = self._loop
        able = port and (loop.has_timer or lib.pyvmm_own_timer(loop) == 0)
        loop.timer_port = port if able else 0
        return bool(able)

    def arm_own_timer(self, delay_ns: int) -> None:
        """The timer that the C loop waits for while it raises the event; 0 disarms it."""
        result = lib.pyvmm_arm_own(self._loop, delay_ns)
        if result < 0:
            raise KvmError("timer_settime", -result)

    @property
    def own_deadline_ns(self) -> int:
        """When that timer expires, by CLOCK_MONOTONIC; 0 where it is not armed."""
        return int(self._loop.deadline_ns)

    @property
    def answered_in_loop(self) -> int:
        """Hypercalls that the C loop has answered."""
        return int(self._loop.answered)

    def claim(self) -> None:
        """Say that this thread is the one that enters.  It takes the kick signal while KVM runs the guest, and not else
        (KVM_SET_SIGNAL_MASK)."""
        others = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL}) - {KICK_SIGNAL}
        mask = ffi.new("struct kvm_signal_mask *", {"sigset": _SIGSET_BYTES})
        mask.len, mask.sigset = _SIGSET_BYTES, sum(1 << number - 1 for number in others).to_bytes(_SIGSET_BYTES, "little")
        ioctl(self.fd, "KVM_SET_SIGNAL_MASK", lib.KVM_SET_SIGNAL_MASK, mask)
        self._loop.signal = KICK_SIGNAL
        with self._claim:
            self._thread = threading.get_ident()

    def disclaim(self) -> None:
        """Say that this thread enters no more: a signal to one that has ended would be the end of the process."""
        if self._loop.has_timer:
            lib.timer_delete(self._loop.timer)
            self._loop.has_timer = 0
        with self._claim:
            self._thread = None

    def kick(self) -> None:
        """From any thread: make `enter` return INTERRUPTED at once, or as soon as it is next called."""
        self.leave_at_once()
        with self._claim:
            if self._thread is not None:
                signal.pthread_kill(self._thread, KICK_SIGNAL)

    def leave_at_once(self) -> None:
        """The next `enter` only completes what KVM has left the guest for."""
        self._loop.kicked = 1

    def kick_seen(self) -> None:
        """The entering thread has noticed a kick: the next `enter` runs the guest again."""
        self._loop.kicked = 0

    def regs_changed(self) -> None:
        """Hand the values in `regs` to KVM at the next entry."""
        self._dirty[0] |= _REGS

    def data(self, offset_bytes: int, size_bytes: int) -> memoryview:
        """Part of the run area: the bytes of a port exit."""
        return memoryview(self._area)[offset_bytes : offset_bytes + size_bytes]

    def get_regs(self) -> Any:
        """KVM_GET_REGS: struct kvm_regs."""
        regs = ffi.new("struct kvm_regs *")
        ioctl(self.fd, "KVM_GET_REGS", lib.KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: Any) -> None:
        """KVM_SET_REGS."""
        ioctl(self.fd, "KVM_SET_REGS", lib.KVM_SET_REGS, regs)

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS: struct kvm_sregs."""
        sregs = ffi.new("struct kvm_sregs *")
        ioctl(self.fd, "KVM_GET_SREGS", lib.KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS."""
        ioctl(self.fd, "KVM_SET_SREGS", lib.KVM_SET_SREGS, sregs)

    def set_cpuid(self, entries: list[Any]) -> None:
        """KVM_SET_CPUID2 from `system.CpuidEntry` rows."""
        table = ffi.new("struct kvm_cpuid2 *", {"entries": len(entries)})
        table.nent = len(entries)
        for row, entry in zip(table.entries[0 : len(entries)], entries, strict=True):
            row.function, row.index = entry.function, entry.subleaf or 0
            row.flags = 0 if entry.subleaf is None else lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            row.eax, row.ebx, row.ecx, row.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
        ioctl(self.fd, "KVM_SET_CPUID2", lib.KVM_SET_CPUID2, table)

    def setup_machine_check(self, banks: int) -> None:
        """KVM_X86_SETUP_MCE: so many banks of machine-check registers, and nothing else in MCG_CAP."""
        ioctl(self.fd, "KVM_X86_SETUP_MCE", lib.KVM_X86_SETUP_MCE, ffi.new("uint64_t *", banks))

    def set_msr(self, number: int, value: int) -> None:
        """KVM_SET_MSRS of one MSR."""
        table = ffi.new("struct kvm_msrs *", {"entries": 1})
        table.nmsrs, table.entries[0].index, table.entries[0].data = 1, number, value
        if ioctl(self.fd, "KVM_SET_MSRS", lib.KVM_SET_MSRS, table) != 1:
            raise KvmError("KVM_SET_MSRS", errno.EINVAL)

    def set_mp_state(self, state: MpState) -> None:
        """KVM_SET_MP_STATE."""
        ioctl(self.fd, "KVM_SET_MP_STATE", lib.KVM_SET_MP_STATE, ffi.new("struct kvm_mp_state *", [int(state)]))

    def translate(self, gva: int) -> int | None:
        """KVM_TRANSLATE: the guest-physical address behind a linear one, or None where nothing is mapped."""
        request = ffi.new("struct kvm_translation *")
        request.linear_address = gva
        ioctl(self.fd, "KVM_TRANSLATE", lib.KVM_TRANSLATE, request)
        return int(request.physical_address) if request.valid else None

    def interrupt(self, vector: int) -> bool:
        """KVM_INTERRUPT: raise a vector as an 8259 would, past the LAPIC; False where one waits already.

        With a split irqchip KVM delivers it once the guest takes interrupts, provided that LVT0 lets it in.
        """
        request = ffi.new("struct kvm_interrupt *", [vector])
        try:
            ioctl(self.fd, "KVM_INTERRUPT", lib.KVM_INTERRUPT, request)
        except KvmError as error:
            if error.code == errno.EEXIST:
                return False
            raise
        return True

    def debug(self, control: GuestDebug, registers: list[int]) -> None:
        """KVM_SET_GUEST_DEBUG: what makes the vCPU leave the guest with `Exit.DEBUG`; `registers` are DR0 to DR7."""
        request = ffi.new("struct kvm_guest_debug *")
        request.control, request.arch.debugreg = control, registers
        ioctl(self.fd, "KVM_SET_GUEST_DEBUG", lib.KVM_SET_GUEST_DEBUG, request)

    def nmi(self) -> None:
        """KVM_NMI: a non-maskable interrupt."""
        ioctl(self.fd, "KVM_NMI", lib.KVM_NMI)

    def open_lint0(self) -> None:
        """Let `interrupt` in: LVT0 as an unmasked ExtINT, which KVM asks of the LAPIC (KVM_GET_LAPIC, KVM_SET_LAPIC)."""
        ioctl(self.fd, "KVM_GET_LAPIC", lib.KVM_GET_LAPIC, self._lapic)
        lvt0 = self._lvt0
        if lvt0[0] & _LVT_MODE_AND_MASK != _LVT_EXTINT:
            lvt0[0] = _LVT_EXTINT
            ioctl(self.fd, "KVM_SET_LAPIC", lib.KVM_SET_LAPIC, self._lapic)

    def tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest TSC's frequency."""
        return ioctl(self.fd, "KVM_GET_TSC_KHZ", lib.KVM_GET_TSC_KHZ)

    def xen_set_vcpu_id(self, vcpu_id: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID: the number by which the guest's hypercalls name this vCPU."""
        attribute = ffi.new("struct kvm_xen_vcpu_attr *")
        attribute.type, attribute.u.vcpu_id = lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu_id
        ioctl(self.fd, "KVM_XEN_VCPU_SET_ATTR(VCPU_ID)", lib.KVM_XEN_VCPU_SET_ATTR, attribute)

    def xen_keep_time(self, gpa: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO: a second vcpu_time_info that KVM keeps, within one page."""
        self._xen_place("VCPU_TIME_INFO", lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa)

    def xen_keep_runstate(self, gpa: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR: a vcpu_runstate_info that KVM keeps."""
        self._xen_place("RUNSTATE_ADDR", lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa)

    def xen_set_info(self, gpa: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO: where its vcpu_info is, within one page."""
        self._xen_place("VCPU_INFO", lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)

    def xen_set_upcall_vector(self, vector: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR: raised at its LAPIC for the events that KVM delivers."""
        attribute = ffi.new("struct kvm_xen_vcpu_attr *")
        attribute.type, attribute.u.vector = lib.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector
        ioctl(self.fd, "KVM_XEN_VCPU_SET_ATTR(UPCALL_VECTOR)", lib.KVM_XEN_VCPU_SET_ATTR, attribute)

    def xen_set_timer(self, port: int, deadline_ns: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_TIMER: VIRQ_TIMER's port, and when it is due, a system time in ns (0: not)."""
        attribute = ffi.new("struct kvm_xen_vcpu_attr *")
        attribute.type, timer = lib.KVM_XEN_VCPU_ATTR_TYPE_TIMER, attribute.u.timer
        timer.port, timer.priority = port, lib.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        timer.expires_ns = deadline_ns
        ioctl(self.fd, "KVM_XEN_VCPU_SET_ATTR(TIMER)", lib.KVM_XEN_VCPU_SET_ATTR, attribute)

    def xen_timer_due(self) -> int:
        """KVM_XEN_VCPU_ATTR_TYPE_TIMER: when VIRQ_TIMER is due, a system time in ns, 0 where it is not."""
        attribute = ffi.new("struct kvm_xen_vcpu_attr *")
        attribute.type = lib.KVM_XEN_VCPU_ATTR_TYPE_TIMER
        ioctl(self.fd, "KVM_XEN_VCPU_GET_ATTR(TIMER)", lib.KVM_XEN_VCPU_GET_ATTR, attribute)
        return int(attribute.u.timer.expires_ns)

    def lapic_enabled(self) -> bool:
        """Whether the guest has switched its LAPIC on, in its spurious-interrupt vector register (KVM_GET_LAPIC)."""
        ioctl(self.fd, "KVM_GET_LAPIC", lib.KVM_GET_LAPIC, self._lapic)
        return bool(ffi.buffer(self._lapic)[_SVR + 1][0] & 1)

    def _xen_place(self, name: str, kind: int, gpa: int) -> None:
        attribute = ffi.new("struct kvm_xen_vcpu_attr *")
        attribute.type, attribute.u.gpa = kind, gpa
        ioctl(self.fd, f"KVM_XEN_VCPU_SET_ATTR({name})", lib.KVM_XEN_VCPU_SET_ATTR, attribute)

    def xen_runstate(self) -> Any:
        """KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA: state, state_entry_time and the times, nanoseconds, once KVM keeps one."""
        attribute = ffi.new("struct kvm_xen_vcpu_attr *")
        attribute.type = lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA
        ioctl(self.fd, "KVM_XEN_VCPU_GET_ATTR(RUNSTATE_DATA)", lib.KVM_XEN_VCPU_GET_ATTR, attribute)
        return attribute.u.runstate

    def close(self) -> None:
        """Unmap the run area and close the descriptor; `regs` and `run` are gone."""
        if self.fd >= 0:
            self.run = self.regs = self.sregs = self._buffer = None
            for view in self._views:
                view.release()
            self._area.close()
            os.close(self.fd)
            self.fd = -1
