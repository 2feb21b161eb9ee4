"""A vCPU's thread: enter the guest, dispatch its exits, carry out its hypercalls, and wait where one of them waits.

The thread owns the registers and everything of `kvm.VcpuFd`.  Others reach it through `post` (run something here before the
next entry), `upcall` and `stop`.
"""

import errno
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from vmm.host import log
from vmm.host.errand import Errand
from vmm.kvm import Exit, KvmError, MpState, VcpuFd
from vmm.machine.clock import VcpuClock
from vmm.machine.exits import Exits
from vmm.machine.lifecycle import Hold, Step, VcpuLife, VcpuPhase
from vmm.machine.memory.paging import PageFault, pieces
from vmm.machine.memory.regions import MemoryFault, SharedBytes
from vmm.machine.parts import VcpuHost
from vmm.machine.registers import load, report
from vmm.machine.upcall import UpcallLine
from vmm.xenabi.constants import LEGACY_VCPUS
from vmm.xenabi.state import Call
from vmm.xenabi.values import Gpa, VcpuId, Wait, XenError
from vmm.xenabi.vcpu_context import VcpuContext

VCPU_INFO_BYTES = 64
VCPU_TIME_OFFSET = 32
REQUEST_CHECK_S = 0.2
LONGEST_WAIT_S = 1e6
_OF_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_UP = VcpuPhase.UP  # a member of an enumeration is looked up by a function each time
_RFLAGS_IF = 1 << 9
Answer = TypeVar("Answer")


class Vcpu:
    """One vCPU of a domain.  `info` is set by its own hypercalls and read by whoever delivers events."""

    def __init__(self, host: VcpuHost, vcpu_id: int, kvm: VcpuFd, line: Callable[["Vcpu"], UpcallLine]) -> None:
        """`line` makes what interrupts it."""
        self.host = host
        self.id = VcpuId(vcpu_id)
        self.kvm = kvm
        self.life = VcpuLife()
        self.info: SharedBytes | None = None
        self._own_info = False
        self.line = line(self)
        self.clock = VcpuClock(self, host, self.line)
        self._requests: deque[Callable[[], None]] = deque()
        self._waiting = False
        self._stirred = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"{host.name}-vcpu{vcpu_id}", daemon=True)
        self._handling = Exits(self, host, Call(host, self))
        self._plain: dict[int, Callable[[], None]] = {
            **self._handling.handlers,
            Exit.INTERRUPTED: kvm.kick_seen,
            Exit.INTR: kvm.kick_seen,
            Exit.TIMER_DUE: self.clock.fired,
            Exit.INIT_TAKEN: self.clock.restore_clock,
        }
        self._exits = self._plain

    # ------------------------------------------------------------------------------------ the thread

    @property
    def online(self) -> bool:
        """Whether the guest uses it."""
        return self.life.phase is VcpuPhase.UP

    @property
    def initialised(self) -> bool:
        """Whether it has a state to start in, or has started."""
        return self.life.phase is not VcpuPhase.EMPTY

    def enter(self, context: VcpuContext) -> None:
        """Set the state that the guest starts in, and have it start there; before its thread has started."""
        load(self.kvm, context)
        self.life.take(Step.INITIALISE)
        self.life.take(Step.START)
        self.clock.choose_timekeeper()
        self.kvm.set_mp_state(MpState.RUNNABLE)

    def start(self) -> None:
        """Let its thread run; again does no harm."""
        if self._thread.ident is None and self.life.phase is not VcpuPhase.STOPPED:
            self._thread.start()

    def post(self, request: Callable[[], None]) -> None:
        """Run something in this vCPU's thread before it next enters the guest."""
        self._requests.append(request)
        if not self.is_own_thread():
            self._kick()

    def stop(self) -> None:
        """Leave the guest for good, at once; from any thread."""
        self.life.take(Step.STOP)
        self._kick()

    def _kick(self) -> None:
        self.kvm.kick()
        if self._waiting or not self.life.runs:
            self._stirred.set()

    def stir(self) -> None:
        """What its hypercall waits for may have come; from any thread."""
        self._stirred.set()

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

    def pause(self, why: Hold) -> None:
        """Stop between two instructions, until `resume`; requests are still carried out."""
        self.life.hold(why)
        if self._thread.is_alive():
            self.ask(lambda: None)

    def hold(self, why: Hold) -> None:
        """Do not run on, until `resume`; in this vCPU's own thread, or before that has started."""
        self.life.hold(why)

    def resume(self, why: Hold) -> None:
        """Go on after `pause`, unless somebody else holds it; from any thread."""
        self.life.let_go(why)
        self._stirred.set()

    def settle(self) -> None:
        """Let KVM complete the instruction that it has left the guest for, and no more; in this vCPU's own thread."""
        self.kvm.leave_at_once()
        while (reason := self.kvm.enter()) >= 0 or reason == Exit.TIMER_DUE:  # a string instruction, with more to come
            self._exits[reason]()
            self.kvm.leave_at_once()
        if reason == Exit.INIT_TAKEN:
            self.clock.restore_clock()
        self.kvm.kick_seen()  # whoever kicked meanwhile has posted something, which is looked for before the next entry

    @property
    def exit_handlers(self) -> dict[int, Callable[[], None]]:
        """What handles each kind of exit now, the hooks around it."""
        return self._exits

    def rehook(self) -> None:
        """The domain's hooks have changed: handle exits by way of those that there are now."""
        if self.host.observed:
            unknown = [reason for reason in Exit if reason not in self._plain]
            handlers = self._plain | {reason: self._crash_for(reason) for reason in unknown}
            hooked = {reason: self.host.around_exit(self.id, reason, handler) for reason, handler in handlers.items()}
        else:
            hooked = self._plain
        self._exits = hooked
        self.post(self.clock.choose_timekeeper)

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

    def place(self) -> tuple[int, bool]:
        """The host's CPU that its thread was last on, and whether it runs there now."""
        thread = self._thread.native_id
        try:
            with open(f"/proc/self/task/{thread}/stat", "rb") as account:
                fields = account.read().rpartition(b")")[2].split()  # the name before it may hold anything
        except OSError:
            return 0, False
        return int(fields[36]), fields[0] == b"R"

    def stop_requested(self) -> bool:
        """Whether the vCPU is to leave its hypercall since its domain ends."""
        return self.life.phase is VcpuPhase.STOPPED

    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF, as the guest left it."""
        return bool(self.kvm.regs.rflags & _RFLAGS_IF)

    def wanted(self) -> bool:
        """Whether somebody waits for this vCPU to leave its hypercall."""
        return not self.life.runs or bool(self._requests)

    def _main(self) -> None:
        # Signals to the process are its main thread's: what came here instead, Python would notice when that wakes up.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OF_FAULTS)
        self.kvm.claim()
        kvm, life = self.kvm, self.life
        try:
            while True:
                while self._requests:
                    self._requests.popleft()()
                if not life.runs:
                    if life.phase is VcpuPhase.STOPPED:
                        break
                    self._stirred.wait()
                    self._stirred.clear()
                    continue
                reason = kvm.enter()
                if life.phase is not _UP and reason >= 0 and life.take(Step.SIPI) is not None:
                    self.clock.choose_timekeeper()  # an application processor that got its start-up interrupt
                handler = self._exits.get(reason)
                if handler is None:
                    self._crash_for(reason)()
                else:
                    handler()
        except KvmError as error:
            self.host.crash(str(error), self.id)
        except Exception as error:  # a fault of pyvmm's: the domain cannot go on, its siblings can
            log.get(__name__).exception("fault in pyvmm", vcpu=self.id, error=repr(error))
            self.host.crash(f"internal fault of pyvmm: {error!r}", self.id)
        finally:
            self.kvm.disclaim()

    def _crash_for(self, reason: int) -> Callable[[], None]:
        text = f"KVM left the guest for a reason that pyvmm does not know ({reason})"
        return lambda: self.host.crash(text, self.id)

    # -------------------------------------------------------------------------------------- waiting

    def wait(self, wait: Wait) -> None:
        """Until its condition holds, its time has come, or somebody wants this vCPU for something else."""
        self.clock.take_timer_from_loop()  # which nobody would wait for meanwhile
        self._waiting = True
        with self.host.events.watched(self.stir):
            while True:
                self._stirred.clear()
                if wait.condition() or self.wanted():
                    break
                left_s = None
                if wait.deadline_ns is not None:
                    left_s = min((wait.deadline_ns - self.host.clock_ns()) / 1e9, LONGEST_WAIT_S)
                    if left_s <= 0:
                        break
                self._stirred.wait(left_s)
        self._waiting = False

    @property
    def blocked(self) -> bool:
        """Whether it waits in a hypercall."""
        return self._waiting

    # ------------------------------------------------------------ what hypercalls ask of their vCPU

    def initialise(self, context: VcpuContext) -> None:
        """VCPUOP_initialise: the state that `up` starts it in."""
        if self.life.phase is not VcpuPhase.EMPTY:
            raise XenError(errno.EEXIST)

        def set_it() -> None:
            load(self.kvm, context)
            self.life.take(Step.INITIALISE)

        if self._thread.ident is None:  # nobody enters yet
            self._initialised_by(set_it)
            return
        errand = Errand(set_it)
        self.post(errand.run)
        while not errand.done(REQUEST_CHECK_S):  # it has never run, so nothing but the domain's end keeps it
            if self.stop_requested():
                return
        self._initialised_by(errand.result)

    @staticmethod
    def _initialised_by(action: Callable[[], None]) -> None:
        try:
            action()
        except KvmError:
            raise XenError(errno.EINVAL) from None

    def up(self) -> None:
        """VCPUOP_up: run, from the first state or from where `down` stopped it."""
        before = self.life.take(Step.START)
        if before is None:
            raise XenError(errno.EINVAL)
        if before is VcpuPhase.DOWN:
            self._stirred.set()
        elif before is VcpuPhase.READY:
            self.clock.choose_timekeeper()
            self.post(lambda: self.kvm.set_mp_state(MpState.RUNNABLE))

    def down(self) -> None:
        """VCPUOP_down: run no more, until `up`."""
        if self.life.take(Step.DOWN) is VcpuPhase.UP:
            self._kick()

    def read_virtual(self, address: int, size_bytes: int) -> bytes:
        """Guest-virtual bytes; XenError(EFAULT)."""
        memory = self.host.memory
        try:
            found = [memory.read(gpa, size) for gpa, size in self._pieces(address, size_bytes, write=False)]
        except (PageFault, MemoryFault):
            raise XenError(errno.EFAULT) from None
        return found[0] if len(found) == 1 else b"".join(found)

    def write_virtual(self, address: int, data: bytes) -> None:
        """To guest-virtual memory, all or nothing; XenError(EFAULT)."""
        memory, position = self.host.memory, 0
        try:
            views = [memory.view(gpa, size) for gpa, size in self._pieces(address, len(data), write=True)]
        except (PageFault, MemoryFault):
            raise XenError(errno.EFAULT) from None
        for view in views:
            view[:] = data[position : position + len(view)]
            position += len(view)

    def _pieces(self, address: int, size_bytes: int, *, write: bool) -> list[tuple[int, int]]:
        return list(pieces(self.host.memory, self.kvm.sregs, address, size_bytes, write=write))

    def physical(self, address: int, size_bytes: int) -> Gpa | None:
        """Where guest-virtual bytes are, if they are RAM within one page; XenError(EFAULT)."""
        try:
            found = self._pieces(address, size_bytes, write=True)
            for gpa, size in found:
                self.host.memory.view(gpa, size)
        except (PageFault, MemoryFault):
            raise XenError(errno.EFAULT) from None
        return Gpa(found[0][0]) if len(found) == 1 else None

    def upcall(self) -> None:
        """Interrupt the guest for its pending events."""
        self.line.notify()

    def upcall_pending(self) -> bool:
        """Whether evtchn_upcall_pending is set."""
        return self.info is not None and self.info.read(0, 1) != b"\0"

    def set_upcall_vector(self, vector: int) -> None:
        """Route this vCPU's upcalls to a vector at its LAPIC; what was pending before had nowhere to go."""
        self.line.route(vector)
        self.post(self.clock.choose_timekeeper)
        self.upcall()

    def set_info(self, gpa: Gpa) -> None:
        """vcpu_info moves to a place of the guest's choosing; once only."""
        if self._own_info:
            raise XenError(errno.EINVAL)
        self._move_info(gpa)
        self._own_info = True

    def _move_info(self, gpa: Gpa) -> None:
        # What it holds moves along, and KVM keeps its time from now on.
        place = self.host.memory.shared(gpa, VCPU_INFO_BYTES)
        if self.info is not None:
            place.write(0, self.info.read(0, VCPU_INFO_BYTES))
        self.info = place
        self.host.event_table.place_info(self.id, place.address)
        self.post(self.clock.choose_timekeeper)
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
        self.clock.place_clock(gpa)
        if self.host.kernel_events.active:
            self.kvm.xen_set_info(gpa - VCPU_TIME_OFFSET)
            if self.line.vector:
                self.kvm.xen_set_upcall_vector(self.line.vector)

    def inject_nmi(self) -> None:
        """Interrupt the guest as a watchdog or an operator would; in this vCPU's own thread."""
        self.kvm.nmi()

    def report(self) -> list[str]:
        """Registers and the bytes at RIP, for a crash report; the thread has left the guest."""
        return report(self.kvm, self.read_virtual)

    def close(self) -> None:
        """Release the descriptors; the thread has ended."""
        self.clock.close()
        self.line.close()
        self._handling.close()
        self.kvm.close()
