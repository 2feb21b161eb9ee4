"""A vCPU's thread: enter the guest, dispatch its exits.

The thread owns the registers and everything of `kvm.Vcpu`.  Others reach it through `post` (run something here before
the next entry), `upcall` (an eventfd) and `stop`.
"""

import errno
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vmm.host import log
from vmm.host.errand import Errand
from vmm.kvm import Exit, KvmError, MpState, VcpuFd
from vmm.kvm.timer import Timer
from vmm.machine.clock import VcpuClock
from vmm.machine.memory.guest import MemoryFault, SharedBytes
from vmm.machine.memory.paging import PageFault, pieces
from vmm.machine.registers import load, report
from vmm.xenabi.constants import HYPERCALL_MSR, LEGACY_VCPUS, PAGE_BYTES
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.interfaces import VcpuState
from vmm.xenabi.state import Call
from vmm.xenabi.transport import INSTRUCTION_BYTES, PORT, hypercall_page
from vmm.xenabi.values import Gpa, Restart, RunstateTimes, VcpuId, XenError
from vmm.xenabi.vcpu_context import CR0_PE, VcpuContext

if TYPE_CHECKING:
    from vmm.machine.domain import Domain

VCPU_INFO_BYTES = 64
VCPU_TIME_OFFSET = 32
CALLBACK_CHECK_NS = 10_000_000
REQUEST_CHECK_S = 0.2
_OF_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_VMCALL_BYTES = 3
_EPERM = (1 << 64) - errno.EPERM
_ENOSYS = (1 << 64) - errno.ENOSYS
_RFLAGS_IF = 1 << 9
Answer = TypeVar("Answer")
_RESET_RIP, _RESET_CS = 0xFFF0, 0xF000


class Vcpu:
    """One vCPU of a domain.  `info` is set by its own hypercalls and read by whoever delivers events."""

    def __init__(self, domain: "Domain", vcpu_id: int, kvm: VcpuFd) -> None:
        self.domain = domain
        self.id = VcpuId(vcpu_id)
        self.kvm = kvm
        self.info: SharedBytes | None = None
        self._own_info = False
        self.online = vcpu_id == 0
        self.upcall_gsi = 0
        self.upcall_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.callback_check = Timer(self._check_callback)
        self._vector = 0  # its own upcall vector, once it has one
        self._callback_due = False
        self._requests: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._initialised = False
        self._is_down = False
        self._paused = False
        self._stirred = threading.Event()
        self._call = Call(domain, self)
        self.time = VcpuClock(self)
        self._thread = threading.Thread(target=self._main, name=f"{domain.config.name}-vcpu{vcpu_id}", daemon=True)
        run = kvm.run
        self._io, self._mmio, self._msr, self._hcall = run.io, run.mmio, run.msr, run.xen.u.hcall
        self._eoi = run.eoi
        self._cs, self._ss = kvm.sregs.cs, kvm.sregs.ss
        self.exit_handlers: dict[int, Callable[[], None]] = {
            Exit.IO: self._port,
            Exit.XEN: self._xen,
            Exit.MMIO: self._mmio_access,
            Exit.IOAPIC_EOI: self._end_of_interrupt,
            Exit.INTERRUPTED: kvm.kick_seen,
            Exit.TIMER_DUE: self.time.fired,
            Exit.INIT_TAKEN: self.time.restore_clock,
            Exit.INTR: kvm.kick_seen,
            Exit.X86_WRMSR: self._write_msr,
            Exit.SHUTDOWN: self._triple_fault,
            Exit.INTERNAL_ERROR: self._internal_error,
            Exit.FAIL_ENTRY: self._fail_entry,
        }

    # ------------------------------------------------------------------------------------ the thread

    def enter(self, context: VcpuContext) -> None:
        """Set the state that the guest starts in; before `start`."""
        load(self.kvm, context)
        self._initialised = self.online = True
        self.time.choose_timekeeper()
        self.kvm.set_mp_state(MpState.RUNNABLE)

    def start(self) -> None:
        """Let the guest run."""
        self._thread.start()

    def post(self, request: Callable[[], None]) -> None:
        """Run something in this vCPU's thread before it next enters the guest."""
        self._requests.append(request)
        if not self.is_own_thread():
            self._kick()

    def stop(self) -> None:
        """Leave the guest for good, at once; from any thread."""
        self._stopping = True
        self._kick()

    def _kick(self) -> None:
        self.kvm.kick()
        if self._is_down or self._paused:
            self._stirred.set()
        self.domain.events.wake()

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """What a function answers in this vCPU's thread, with the guest's registers as they are between two instructions.

        None where the vCPU does not run any more.  From any thread but a vCPU's; errors are the caller's.
        """

        def answer() -> Answer:
            self.settle()
            return question()

        errand = Errand(answer)
        self.post(errand.run)
        while not errand.done(REQUEST_CHECK_S):
            if not self._thread.is_alive():
                return None
        return errand.result()

    def pause(self) -> None:
        """Stop between two instructions, until `resume`; requests are still carried out."""
        self.ask(self.hold)

    def hold(self) -> None:
        """The same, in this vCPU's own thread."""
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`; from any thread."""
        self._paused = False
        self._stirred.set()

    def settle(self) -> None:
        """Let KVM complete the instruction that it has left the guest for, and no more; in this vCPU's own thread."""
        self.kvm.leave_at_once()
        while (reason := self.kvm.enter()) >= 0 or reason == Exit.TIMER_DUE:  # a string instruction, with more to come
            self.exit_handlers[reason]()
            self.kvm.leave_at_once()
        if reason == Exit.INIT_TAKEN:
            self.time.restore_clock()
        self.kvm.kick_seen()  # whoever kicked meanwhile has posted something, which is looked for before the next entry

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None and not self.is_own_thread():
            self._thread.join()

    def is_own_thread(self) -> bool:
        """Whether the caller runs in this vCPU's thread."""
        return threading.current_thread() is self._thread

    @property
    def thread_id(self) -> int | None:
        """The host's number of its thread, once that has started."""
        return self._thread.native_id

    def waits(self) -> None:
        """Its timer, which the C loop waits for, has to be Python's while it waits in a hypercall."""
        self.time.take_timer_from_loop()

    def place(self) -> tuple[int, bool]:
        """The host's CPU that its thread was last on, and whether it runs there now."""
        thread = self._thread.native_id
        try:
            with open(f"/proc/self/task/{thread}/stat", "rb") as account:
                fields = account.read().rpartition(b")")[2].split()  # the name before it may hold anything
        except OSError:
            return 0, False
        return int(fields[36]), fields[0] == b"R"

    @property
    def vector(self) -> int:
        """Its own upcall vector, 0 where it has none."""
        return self._vector

    def stop_requested(self) -> bool:
        """Whether the vCPU is to leave its hypercall since its domain ends."""
        return self._stopping

    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF, as the guest left it."""
        return bool(self.kvm.regs.rflags & _RFLAGS_IF)

    def wanted(self) -> bool:
        """Whether somebody waits for this vCPU to leave its hypercall."""
        return self._stopping or bool(self._requests)

    def _main(self) -> None:
        # Signals to the process are its main thread's: what came here instead, Python would notice when that wakes up.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OF_FAULTS)
        self.kvm.claim()
        kvm, exits = self.kvm, self.exit_handlers
        try:
            while not self._stopping:
                while self._requests:
                    self._requests.popleft()()
                if self._is_down or self._paused:
                    self._stirred.wait()
                    self._stirred.clear()
                    continue
                reason = kvm.enter()
                if not self.online and not self._is_down and reason >= 0:
                    self._initialised = self.online = True  # an application processor that got its SIPI
                    self.time.choose_timekeeper()
                handler = exits.get(reason)
                if handler is None:
                    self.domain.crash(f"KVM left the guest for a reason that pyvmm does not know ({reason})", self.id)
                else:
                    handler()
        except KvmError as error:
            self.domain.crash(str(error), self.id)
        except Exception as error:  # a fault of pyvmm's: the domain cannot go on, its siblings can
            log.get(__name__).exception("fault in pyvmm", vcpu=self.id, error=repr(error))
            self.domain.crash(f"internal fault of pyvmm: {error!r}", self.id)
        finally:
            self.kvm.disclaim()

    # ---------------------------------------------------------------------------------------- exits

    def _port(self) -> None:
        io = self._io
        port = io.port
        if port == PORT and io.direction:
            self._hypercall_by_port()
            return
        size, offset = io.size, io.data_offset
        data = self.kvm.data(offset, size * io.count)
        for start in range(0, size * io.count, size):
            if io.direction:
                self.domain.ports.write(port, size, int.from_bytes(data[start : start + size], "little"))
            else:
                data[start : start + size] = self.domain.ports.read(port, size).to_bytes(size, "little")
        data.release()

    def _mmio_access(self) -> None:
        access = self._mmio
        address, size = access.phys_addr, access.len
        if access.is_write:
            self.domain.mmio.write(address, size, int.from_bytes(bytes(access.data)[:size], "little"))
        else:
            access.data = self.domain.mmio.read(address, size).to_bytes(8, "little")

    def _end_of_interrupt(self) -> None:
        if self.domain.pc is not None:
            self.domain.pc.ioapic.end_of_interrupt(self._eoi.vector)

    def _write_msr(self) -> None:
        msr = self._msr
        if msr.index == HYPERCALL_MSR and not msr.data & (PAGE_BYTES - 1):
            try:
                self.domain.memory.write(msr.data, hypercall_page())
            except MemoryFault:
                msr.error = 1
            else:
                self.domain.hypercall_page_asked = True
                msr.error = 0
        else:
            msr.error = 1

    def _triple_fault(self) -> None:
        text = "triple fault"
        if self.kvm.regs.rip == _RESET_RIP and self._cs.selector == _RESET_CS:
            text += " (AMD-V keeps no state after one: the registers are those of the reset that KVM made of it)"
        self.domain.crash(text, self.id)

    def _internal_error(self) -> None:
        suberror = self.kvm.run.internal.suberror
        meaning = {
            1: "KVM could not emulate an instruction",
            2: "too many exceptions at once",
            3: "an exit while delivering an event",
        }
        self.domain.crash(meaning.get(suberror, f"KVM internal error {suberror}"), self.id)

    def _fail_entry(self) -> None:
        reason = self.kvm.run.fail_entry.hardware_entry_failure_reason
        self.domain.crash(f"the CPU refused to enter the guest (hardware reason {reason:#x})", self.id)

    # ----------------------------------------------------------------------------------- hypercalls

    def _hypercall_by_port(self) -> None:
        regs = self.kvm.regs
        call = self._call
        if self._ss.dpl:
            self.domain.hypercalls += 1
            regs.rax = _EPERM
        elif self._cs.l:
            call.abi, call.number = Abi.X86_64, regs.rax & 0xFFFF_FFFF
            call.args = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
            try:
                regs.rax = self.domain.hypercall(call) & 0xFFFF_FFFF_FFFF_FFFF
            except Restart as restart:
                self._restart(restart.arguments, INSTRUCTION_BYTES)
                return
        elif self.kvm.sregs.cr0 & CR0_PE:
            low = 0xFFFF_FFFF
            call.abi, call.number = Abi.X86_32, regs.rax & low
            call.args = (
                regs.rbx & low, regs.rcx & low, regs.rdx & low, regs.rsi & low, regs.rdi & low, regs.rbp & low,
            )  # fmt: skip
            try:
                regs.rax = self.domain.hypercall(call) & low
            except Restart as restart:
                self._restart(restart.arguments, INSTRUCTION_BYTES)
                return
        else:
            regs.rax = _ENOSYS  # real mode has no hypercalls
        self.kvm.regs_changed()

    def _xen(self) -> None:
        hcall, call = self._hcall, self._call
        if hcall.cpl:
            self.domain.hypercalls += 1
            hcall.result = _EPERM
            return
        call.abi = Abi.X86_64 if hcall.longmode else Abi.X86_32
        call.number = hcall.input & 0xFFFF_FFFF
        call.args = tuple(hcall.params)
        try:
            hcall.result = self.domain.hypercall(call) & (0xFFFF_FFFF_FFFF_FFFF if hcall.longmode else 0xFFFF_FFFF)
        except Restart as restart:
            self._restart(restart.arguments, _VMCALL_BYTES)

    def _restart(self, arguments: tuple[int, ...], instruction_bytes: int) -> None:
        """Have the guest issue its hypercall again, with new leading arguments, after it has taken its interrupts.

        KVM completes the instruction at the next entry, so enter once without running and step back.
        """
        kvm, call = self.kvm, self._call
        self.settle()
        regs = kvm.regs
        regs.rip -= instruction_bytes
        regs.rax = call.number
        names = (
            ("rdi", "rsi", "rdx", "r10", "r8", "r9")
            if call.abi is Abi.X86_64
            else ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
        )
        for name, value in zip(names, arguments, strict=False):
            setattr(regs, name, value)
        kvm.regs_changed()

    # ------------------------------------------------------------ what hypercalls ask of their vCPU

    def initialise(self, context: VcpuContext) -> None:
        """VCPUOP_initialise: the state that `up` starts it in."""
        if self._initialised:
            raise XenError(errno.EEXIST)

        def set_it() -> None:
            load(self.kvm, context)
            self._initialised = True

        errand = Errand(set_it)
        self.post(errand.run)
        while not errand.done(REQUEST_CHECK_S):  # it has never run, so nothing but the domain's end keeps it
            if self._stopping:
                return
        try:
            errand.result()
        except KvmError:
            raise XenError(errno.EINVAL) from None

    def up(self) -> None:
        """VCPUOP_up: run, from the first state or from where `down` stopped it."""
        if not self._initialised:
            raise XenError(errno.EINVAL)
        if self._is_down:
            self._is_down = False
            self.online = True
            self._stirred.set()
        elif not self.online:
            self.online = True
            self.time.choose_timekeeper()
            self.post(lambda: self.kvm.set_mp_state(MpState.RUNNABLE))

    def down(self) -> None:
        """VCPUOP_down: run no more, until `up`."""
        if self.online:
            self._is_down = True
            self.online = False
            self._kick()

    def read_virtual(self, address: int, size_bytes: int) -> bytes:
        """Guest-virtual bytes; XenError(EFAULT)."""
        memory = self.domain.memory
        try:
            found = [memory.read(gpa, size) for gpa, size in self._pieces(address, size_bytes, write=False)]
        except (PageFault, MemoryFault):
            raise XenError(errno.EFAULT) from None
        return found[0] if len(found) == 1 else b"".join(found)

    def write_virtual(self, address: int, data: bytes) -> None:
        """To guest-virtual memory, all or nothing; XenError(EFAULT)."""
        memory, position = self.domain.memory, 0
        try:
            views = [memory.view(gpa, size) for gpa, size in self._pieces(address, len(data), write=True)]
        except (PageFault, MemoryFault):
            raise XenError(errno.EFAULT) from None
        for view in views:
            view[:] = data[position : position + len(view)]
            position += len(view)

    def _pieces(self, address: int, size_bytes: int, *, write: bool) -> "list[tuple[int, int]]":
        return list(pieces(self.domain.memory, self.kvm.sregs, address, size_bytes, write=write))

    def physical(self, address: int, size_bytes: int) -> Gpa | None:
        """Where guest-virtual bytes are, if they are RAM within one page; XenError(EFAULT)."""
        try:
            found = self._pieces(address, size_bytes, write=True)
            for gpa, size in found:
                self.domain.memory.view(gpa, size)
        except (PageFault, MemoryFault):
            raise XenError(errno.EFAULT) from None
        return Gpa(found[0][0]) if len(found) == 1 else None

    def upcall(self) -> None:
        """Interrupt the guest for its pending events: at its own vector, else by the domain's callback vector."""
        if self._vector:
            os.eventfd_write(self.upcall_fd, 1)
        elif self.domain.callback_vector is not None and not self._callback_due:
            self._callback_due = True
            self.post(self._inject_callback)

    def _inject_callback(self) -> None:
        # Linux before 6.0 does not acknowledge this vector at its LAPIC, so it has to come past it.
        self._callback_due = False
        vector = self.domain.callback_vector
        if vector is not None and self.upcall_pending() and not self.domain.kernel_events.active:
            self.kvm.open_lint0()
            self.kvm.interrupt(vector)
            self.callback_check.arm(CALLBACK_CHECK_NS)

    def _check_callback(self) -> None:
        # The line is level triggered.  The guest may have masked LINT0 again between the interrupt and its delivery.
        if self.upcall_pending():
            self.upcall()

    def upcall_pending(self) -> bool:
        """Whether evtchn_upcall_pending is set."""
        return self.info is not None and self.info.read(0, 1) != b"\0"

    def set_upcall_vector(self, vector: int) -> None:
        """Route this vCPU's upcalls to a vector at its LAPIC; what was pending before had nowhere to go."""
        self.domain.route_upcall(self.id, vector)
        self._vector = vector
        self.domain.event_table.interrupt_by(self.id, self.upcall_fd)
        self.post(self.time.choose_timekeeper)
        if self.domain.kernel_events.active:
            self.post(lambda: self.kvm.xen_set_upcall_vector(vector))
        self.upcall()

    def set_info(self, gpa: Gpa) -> None:
        """vcpu_info moves to a place of the guest's choosing; once only."""
        if self._own_info:
            raise XenError(errno.EINVAL)
        self._move_info(gpa)
        self._own_info = True

    def _move_info(self, gpa: Gpa) -> None:
        # What it holds moves along, and KVM keeps its time from now on.
        place = self.domain.memory.shared(gpa, VCPU_INFO_BYTES)
        if self.info is not None:
            place.write(0, self.info.read(0, VCPU_INFO_BYTES))
        self.info = place
        self.domain.event_table.place_info(self.id, place.address)
        self.post(self.time.choose_timekeeper)
        if self.is_own_thread():
            self._set_clock(gpa + VCPU_TIME_OFFSET)
        else:
            self.post(lambda: self._set_clock(gpa + VCPU_TIME_OFFSET))

    def use_shared_info(self, gpa: Gpa) -> None:
        """The shared info page is here: unless it registered one elsewhere, this vCPU's info is in it."""
        if self.id < LEGACY_VCPUS and not self._own_info:
            self._move_info(Gpa(gpa + self.id * VCPU_INFO_BYTES))

    def _set_clock(self, gpa: int) -> None:
        # KVM's own clock has Xen's structure: let KVM keep it there.
        self.time.place_clock(gpa)
        if self.domain.kernel_events.active:
            self.kvm.xen_set_info(gpa - VCPU_TIME_OFFSET)
            if self._vector:
                self.kvm.xen_set_upcall_vector(self._vector)

    def runstate(self) -> RunstateTimes:
        """How it has spent its time so far."""
        return self.time.runstate()

    def keep_runstate(self, address: int, abi: Abi, caller: VcpuState) -> None:
        """Keep a copy of it at a guest-virtual address of the caller's."""
        self.time.keep_runstate(address, abi, caller)

    def keep_time(self, address: int, caller: VcpuState) -> None:
        """Keep a second vcpu_time_info there; XenError(ENOSYS) where the host cannot."""
        self.time.keep_time(address, caller)

    def set_timer(self, deadline_ns: int | None) -> None:
        """VIRQ_TIMER at a guest system time, or never."""
        self.time.set_timer(deadline_ns)

    def set_periodic_timer(self, period_ns: int | None) -> None:
        """VIRQ_TIMER every so often, or no more."""
        self.time.set_periodic_timer(period_ns)

    def inject_nmi(self) -> None:
        """Interrupt the guest as a watchdog or an operator would; in this vCPU's own thread."""
        self.kvm.nmi()

    def report(self) -> list[str]:
        """Registers and the bytes at RIP, for a crash report; the thread has left the guest."""
        return report(self.kvm, self.read_virtual)

    def close(self) -> None:
        """Release the descriptors; the thread has ended."""
        self.time.close()
        self.callback_check.close()
        os.close(self.upcall_fd)
        self._io = self._mmio = self._msr = self._hcall = self._cs = self._ss = None
        self.kvm.close()
