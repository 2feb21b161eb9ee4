"""Event channels that KVM carries out itself: with KVM_XEN, and for guests that stay with the 2-level ABI.

KVM then delivers IPIs and VIRQ_TIMER without leaving the kernel.  It knows nothing of the FIFO ABI: a guest that changes to
it (Linux since 3.14, unless booted with xen.fifo_events=0) gets everything from pyvmm again, but for what it sends to back
ends: those are eventfds, which KVM signals whatever the ABI.

KVM_XEN_HVM_CONFIG_EVTCHN_SEND stays off: it has KVM carry out SCHEDOP_poll alone, whose timeout, a system time, KVM takes
for a delay (arch/x86/kvm/xen.c, `kvm_xen_schedop_poll`, Linux 5.19 to 7.2).  Without it KVM answers a poll at once.
Source: Linux Documentation/virt/kvm/api.rst, 4.126, 4.127 and 8.27.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from vmm.boot.acpi import apic_id
from vmm.kvm import VmFd, XenFlag
from vmm.machine.parts import Callback
from vmm.xenabi.values import Gfn, Port, VcpuId

LEAST_PORTS = 1024
"""Ports that KVM takes from any guest: a 32-bit one has no more."""

NEEDED = XenFlag.SHARED_INFO | XenFlag.EVTCHN_2LEVEL | XenFlag.EVTCHN_SEND


class Timekeeper(Protocol):
    """A vCPU's clock."""

    def take_timer_from_kvm(self) -> None:
        """The timer is pyvmm's again, and what it is armed for; what KVM was still to interrupt the guest for is, too."""
        ...

    def choose_timekeeper(self) -> None:
        """Look again who keeps the timer."""
        ...


class TimedVcpu(Protocol):
    """A vCPU whose timer KVM may keep."""

    @property
    def clock(self) -> Timekeeper:
        """Its clock."""
        ...

    def post(self, request: Callable[[], None]) -> None:
        """Run something in its thread before it next enters the guest."""
        ...


class KernelEvents:
    """What of a domain's event channels is KVM's.  Called in any thread, with the event channels' lock held."""

    def __init__(self, vm: VmFd, kept_by_kvm: XenFlag, callback: Callback, vcpus: Sequence[TimedVcpu]) -> None:
        self._vm = vm
        self._callback = callback
        self._vcpus = vcpus
        self._possible = NEEDED in kept_by_kvm
        self.active = False
        self._sends = XenFlag.EVTCHN_SEND in kept_by_kvm
        self._eventfds: dict[Port, int] = {}
        self._observed = False

    def start(self, gfn: Gfn, ipis: list[tuple[Port, VcpuId]]) -> None:
        """The shared info page is at `gfn`: KVM may begin."""
        if not self._possible or self._observed:
            return
        self._vm.xen_set_shared_info(gfn)
        self.active = True
        self._choose_timekeepers()
        for port, vcpu in ipis:
            self.bind_ipi(port, vcpu)
        if self._callback.vector is not None:
            self._vm.xen_set_callback_vector(self._callback.vector)

    def stop(self) -> None:
        """The guest takes the FIFO ABI, or somebody wants to see its events: KVM delivers none any more."""
        self._possible = False
        if self.active:
            self.active = False
            self._vm.xen_set_callback_vector(0)
            self._vm.xen_forget_ports()
            self._bind_eventfds()
            for vcpu in self._vcpus:
                vcpu.clock.take_timer_from_kvm()
            self._choose_timekeepers()

    def observe(self, wanted: bool) -> None:
        """Somebody wants to see what is sent, or no longer: back ends are rung by pyvmm meanwhile."""
        if wanted == self._observed:
            return
        if wanted:
            self.stop()
            for port in self._eventfds:
                self._vm.xen_forget_port(port)
        self._observed = wanted
        self._bind_eventfds()

    def _bind_eventfds(self) -> None:
        if not self._observed:
            for port, fd in self._eventfds.items():
                self._vm.xen_bind_eventfd(port, fd)

    def bind_ipi(self, port: Port, vcpu: VcpuId) -> None:
        """A port that interrupts a vCPU of the same domain."""
        if self.active:
            self._vm.xen_bind_ipi(port, apic_id(vcpu))

    def bind_eventfd(self, port: Port, fd: int) -> None:
        """A port that rings a back end: KVM does that whichever ABI the guest uses."""
        if self._sends and port < LEAST_PORTS:
            self._eventfds[port] = fd
            if not self._observed:
                self._vm.xen_bind_eventfd(port, fd)

    def forget(self, port: Port) -> None:
        """A port is closed that may have been bound here."""
        if self.active or port in self._eventfds:
            self._vm.xen_forget_port(port)
            self._eventfds.pop(port, None)

    def timer_changed(self, vcpu: VcpuId) -> None:
        """A vCPU's VIRQ_TIMER is bound, or no longer."""
        if self.active:
            self._vcpus[vcpu].clock.take_timer_from_kvm()
        self._vcpus[vcpu].post(self._vcpus[vcpu].clock.choose_timekeeper)

    def _choose_timekeepers(self) -> None:
        for vcpu in self._vcpus:
            vcpu.post(vcpu.clock.choose_timekeeper)

    def set_callback_vector(self, vector: int | None) -> None:
        """The vector that KVM injects while a vCPU's upcall is pending."""
        if self.active:
            self._vm.xen_set_callback_vector(vector or 0)
