"""A vCPU's time: its clock, its timers and its run state; what KVM keeps of them, what the C loop sets, and what is left.

`set_timer` and what it calls run in the vCPU's thread; timers expire in the domain's timer thread.
"""

import errno
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import TYPE_CHECKING

from vmm.kvm import XenFlag
from vmm.kvm.timer import Timer
from vmm.machine.parts import VcpuHost, VcpuThread
from vmm.machine.upcall import Upcall
from vmm.xenabi.constants import RUNSTATE_UPDATE, Runstate, Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.interfaces import VcpuState
from vmm.xenabi.structs import RunstateInfo
from vmm.xenabi.values import RunstateTimes, XenError

if TYPE_CHECKING:
    from vmm.machine.records import ClockRecord

MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01
TIME_INFO_BYTES = 32
RUNSTATE_UPDATE_NS = 50_000_000
NEVER_NS = (1 << 64) - 1
LONGEST_DELAY_NS = 1 << 60


class VcpuClock:
    """Owned by the vCPU's thread."""

    def __init__(self, vcpu: VcpuThread, host: VcpuHost, upcall: Upcall) -> None:
        self._vcpu = vcpu
        self._host = host
        self._upcall = upcall
        self.singleshot = Timer(self.fired)
        self.periodic = Timer(self.fired)
        self.in_loop = True
        """Whether hypercalls may be answered without Python."""
        self._runstate_area: tuple[int, Abi] | None = None
        self._runstate_due = NEVER_NS
        self._runstate_by_kvm = False
        self._clock_gpa: int | None = None
        self._raised_by_loop = False
        self._kept_by_kvm = False
        """Whether KVM may have been left the timer, which the guest then sets without pyvmm."""

    def place_clock(self, gpa: int) -> None:
        """The guest's vcpu_time_info is here."""
        self._clock_gpa = gpa
        self.restore_clock()

    def restore_clock(self) -> None:
        """KVM takes its clock away from a vCPU that gets an INIT, Xen does not: give it back."""
        if self._clock_gpa is not None:
            self._vcpu.kvm.set_msr(MSR_KVM_SYSTEM_TIME_NEW, self._clock_gpa | 1)

    def runstate(self) -> RunstateTimes:
        """From KVM where it keeps it, else from the host's account of the thread: what it neither ran nor waited, it was
        blocked."""
        if self._runstate_by_kvm and self._vcpu.is_own_thread():
            kept = self._vcpu.kvm.xen_runstate()
            return RunstateTimes(*(getattr(kept, name) for name in RunstateTimes._fields))
        now = self._host.clock_ns()
        thread = self._vcpu.thread_id
        if not self._vcpu.online or thread is None:
            return RunstateTimes(Runstate.offline, 0, 0, 0, 0, now)
        try:
            with open(f"/proc/self/task/{thread}/schedstat", "rb") as account:
                running, waiting = map(int, account.read().split()[:2])
        except (OSError, ValueError):
            running, waiting = now, 0  # the host keeps none, or the thread has ended
        running = min(running, now)
        waiting = min(waiting, now - running)
        return RunstateTimes(Runstate.running, now, running, waiting, now - running - waiting, 0)

    def keep_runstate(self, address: int, abi: Abi, caller: VcpuState) -> None:
        """Keep a copy at a guest-virtual address: KVM does at each switch, else as often as the guest sets its timer."""
        kept = self._host.kept_by_kvm
        if XenFlag.RUNSTATE in kept and XenFlag.RUNSTATE_UPDATE_FLAG in kept:
            gpa = caller.physical(address, RunstateInfo.sizeof(abi))
            if gpa is not None:
                self._runstate_area, self._runstate_due, self._runstate_by_kvm = None, NEVER_NS, True
                self._vcpu.post(lambda: self._vcpu.kvm.xen_keep_runstate(gpa))
                return
        self._runstate_area, self._runstate_due = (address, abi), 0
        self._update_runstate()

    def keep_time(self, address: int, caller: VcpuState) -> None:
        """A second vcpu_time_info; only KVM_XEN can."""
        if XenFlag.INTERCEPT_HCALL not in self._host.kept_by_kvm:
            raise XenError(errno.ENOSYS)
        gpa = caller.physical(address, TIME_INFO_BYTES)
        if gpa is None:
            raise XenError(errno.EINVAL)
        self._vcpu.post(lambda: self._vcpu.kvm.xen_keep_time(gpa))

    def _update_runstate(self) -> None:
        if self._runstate_area is None or not self._vcpu.is_own_thread():
            return
        address, abi = self._runstate_area
        times = self.runstate()
        self._runstate_due = times.state_entry_time + RUNSTATE_UPDATE_NS
        self.choose_timekeeper()
        info = RunstateInfo(**times._asdict())
        flag = RUNSTATE_UPDATE if self._host.runstate_flag else 0
        try:
            info.state_entry_time = times.state_entry_time | flag
            self._vcpu.write_virtual(address, info.pack(abi))
            if flag:
                entry = address + RunstateInfo.offsetof("state_entry_time", abi)
                self._vcpu.write_virtual(entry, times.state_entry_time.to_bytes(8, "little"))
        except XenError:
            pass  # the guest has unmapped it: Xen lets it go without, too

    def set_timer(self, deadline_ns: int | None) -> None:
        """VIRQ_TIMER at a guest system time, or never."""
        if deadline_ns is not None and deadline_ns > self._runstate_due:
            self._update_runstate()
        if self._vcpu.kvm.own_deadline_ns:
            self._vcpu.kvm.arm_own_timer(0)
        if self._host.kernel_events.active and self._kvm_can_time() and deadline_ns is not None:
            self.singleshot.disarm()
            self._leave_timer_to_kvm(deadline_ns)
            return
        if self._vcpu.is_own_thread():
            self._forget_timer_of_kvm()
        if deadline_ns is None:
            self.singleshot.disarm()
        elif self._raised_by_loop:
            self.singleshot.disarm()
            ahead = deadline_ns - self._host.clock_ns()
            self._vcpu.kvm.arm_own_timer(min(max(ahead, 1), LONGEST_DELAY_NS))
        else:
            self.singleshot.arm(deadline_ns - self._host.clock_ns())

    def _kvm_can_time(self) -> bool:
        # KVM raises the vector only if the upcall was not pending yet, and the LAPIC forgets it while it is off.
        if not self._vcpu.is_own_thread():
            return False
        return self._vcpu.kvm.lapic_enabled() if self._upcall.vector else self._host.callback.vector is not None

    def _leave_timer_to_kvm(self, deadline_ns: int) -> None:
        port = self._host.events.port_of_virq(Virq.TIMER, self._vcpu.id)
        if port is not None:
            self._kept_by_kvm = True
            self._vcpu.kvm.xen_set_timer(port, max(deadline_ns, 1))
            if self._vcpu.upcall_pending():
                self._upcall.notify()

    def take_timer_from_kvm(self) -> None:
        """The timer is pyvmm's again, and what it is armed for; what KVM was still to interrupt the guest for is, too."""
        self._vcpu.post(self._take_timer_from_kvm)

    def _take_timer_from_kvm(self) -> None:
        deadline_ns = self._forget_timer_of_kvm()
        if deadline_ns:
            self.singleshot.arm(deadline_ns - self._host.clock_ns())
        if self._vcpu.upcall_pending():
            self._upcall.notify()

    def _forget_timer_of_kvm(self) -> int:
        """When it was due, 0 where it was not."""
        if not self._kept_by_kvm:
            return 0
        self._kept_by_kvm = False
        deadline_ns = self._vcpu.kvm.xen_timer_due()
        self._vcpu.kvm.xen_set_timer(0, 0)
        return deadline_ns

    def set_periodic_timer(self, period_ns: int | None) -> None:
        """VIRQ_TIMER every so often, or no more."""
        if period_ns is None:
            self.periodic.disarm()
            self.restore_clock()  # a CPU that comes up again after an INIT does this first
        else:
            self.periodic.arm(period_ns, period_ns)

    def choose_timekeeper(self) -> None:
        """Let the C loop set the timer where KVM does not and where nobody has to see it done."""
        kvm, events = self._vcpu.kvm, self._host.kernel_events
        possible = self.in_loop and self._vcpu.online and not events.active and not self._host.observed
        kvm.let_loop_answer(able=possible, python_after_ns=self._runstate_due)
        if self._vcpu.is_own_thread():
            port = self._host.events.port_of_virq(Virq.TIMER, self._vcpu.id) if possible else None
            if port is None:
                self.take_timer_from_loop()
            self._raised_by_loop = kvm.let_loop_raise(port or 0)  # what Python waits for it still raises itself

    def take_timer_from_loop(self) -> None:
        """What the C loop waits for is Python's to wait for, until the guest's next deadline; in the vCPU's thread."""
        kvm = self._vcpu.kvm
        if self._vcpu.is_own_thread() and kvm.own_deadline_ns:
            ahead = kvm.own_deadline_ns - clock_gettime_ns(CLOCK_MONOTONIC)
            kvm.arm_own_timer(0)
            self.singleshot.arm(ahead)

    def fired(self) -> None:
        """A timer has come whose event is not the C loop's to raise."""
        self._host.events.send_virq(Virq.TIMER, self._vcpu.id)

    def record(self) -> "ClockRecord":
        """The clock as data; the vCPU is paused."""
        from vmm.machine.records import ClockRecord

        left_ns = self.singleshot.left_ns()[0]
        if self._vcpu.kvm.own_deadline_ns:
            left_ns = max(self._vcpu.kvm.own_deadline_ns - clock_gettime_ns(CLOCK_MONOTONIC), 1)
        elif self._kept_by_kvm and (due_ns := self._vcpu.kvm.xen_timer_due()):
            left_ns = max(due_ns - self._host.clock_ns(), 1)
        period_ns = self.periodic.left_ns()[1]
        deadline = self._host.clock_ns() + left_ns if left_ns else None
        return ClockRecord(self._clock_gpa, self._runstate_area, deadline, period_ns or None)

    def restore(self, record: "ClockRecord") -> None:
        """Go on as another did, whose system time this guest has; before its vCPU runs."""
        if record.time_at is not None:
            self.place_clock(record.time_at)
        if record.runstate_at is not None:
            self._runstate_area, self._runstate_due = record.runstate_at, 0
        if record.deadline_ns is not None:
            self.singleshot.arm(record.deadline_ns - self._host.clock_ns())
        if record.period_ns is not None:
            self.periodic.arm(record.period_ns, record.period_ns)

    def close(self) -> None:
        """Release the timers; the thread has ended."""
        self.singleshot.close()
        self.periodic.close()
