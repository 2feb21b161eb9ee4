"""Event channels that KVM carries out itself: with KVM_XEN, and for guests that stay with the 2-level ABI.

KVM then delivers IPIs and VIRQ_TIMER, and wakes who polls, without leaving the kernel.  It knows nothing of the FIFO ABI:
a guest that changes to it (Linux since 3.14, unless booted with xen.fifo_events=0) gets everything from pyvmm again, but
for what it sends to back ends: those are eventfds, which KVM signals whatever the ABI.
Source: Linux Documentation/virt/kvm/api.rst, 4.126, 4.127 and 8.27.
"""

from typing import TYPE_CHECKING

from vmm.boot.acpi import apic_id
from vmm.kvm import XenFlag
from vmm.xenabi.values import Gfn, Port, VcpuId

if TYPE_CHECKING:
    from vmm.machine.domain import Domain

LEAST_PORTS = 1024
"""Ports that KVM takes from any guest: a 32-bit one has no more."""

NEEDED = XenFlag.SHARED_INFO | XenFlag.EVTCHN_2LEVEL | XenFlag.EVTCHN_SEND


class KernelEvents:
    """What of a domain's event channels is KVM's.  Called in any thread, with the event channels' lock held."""

    def __init__(self, domain: "Domain") -> None:
        self._domain = domain
        self._possible = NEEDED in domain.kept_by_kvm
        self.active = False
        self._sends = XenFlag.EVTCHN_SEND in domain.kept_by_kvm
        self._eventfds: dict[Port, int] = {}

    def start(self, gfn: Gfn, ipis: list[tuple[Port, VcpuId]]) -> None:
        """The shared info page is at `gfn`: KVM may begin."""
        if not self._possible:
            return
        self._domain.vm.xen_set_shared_info(gfn)
        self._domain.vm.xen_let_send(True)
        self.active = True
        self._choose_timekeepers()
        for port, vcpu in ipis:
            self.bind_ipi(port, vcpu)
        if self._domain.callback_vector is not None:
            self._domain.vm.xen_set_callback_vector(self._domain.callback_vector)

    def stop(self) -> None:
        """The guest takes the FIFO ABI."""
        self._possible = False
        if self.active:
            self.active = False
            self._domain.vm.xen_set_callback_vector(0)
            self._domain.vm.xen_forget_ports()
            for port, fd in self._eventfds.items():
                self._domain.vm.xen_bind_eventfd(port, fd)
            self._domain.vm.xen_let_send(False)
            for vcpu in self._domain.vcpus:
                vcpu.time.take_timer_from_kvm()
            self._choose_timekeepers()

    def bind_ipi(self, port: Port, vcpu: VcpuId) -> None:
        """A port that interrupts a vCPU of the same domain."""
        if self.active:
            self._domain.vm.xen_bind_ipi(port, apic_id(vcpu))

    def bind_eventfd(self, port: Port, fd: int) -> None:
        """A port that rings a back end: KVM does that whichever ABI the guest uses."""
        if self._sends and port < LEAST_PORTS:
            self._domain.vm.xen_bind_eventfd(port, fd)
            self._eventfds[port] = fd

    def forget(self, port: Port) -> None:
        """A port is closed that may have been bound here."""
        if self.active or port in self._eventfds:
            self._domain.vm.xen_forget_port(port)
            self._eventfds.pop(port, None)

    def timer_changed(self, vcpu: VcpuId) -> None:
        """A vCPU's VIRQ_TIMER is bound, or no longer."""
        time = self._domain.vcpus[vcpu].time
        if self.active:
            time.take_timer_from_kvm()
        self._domain.vcpus[vcpu].post(time.choose_timekeeper)

    def _choose_timekeepers(self) -> None:
        for vcpu in self._domain.vcpus:
            vcpu.post(vcpu.time.choose_timekeeper)

    def set_callback_vector(self, vector: int | None) -> None:
        """The vector that KVM injects while a vCPU's upcall is pending."""
        if self.active:
            self._domain.vm.xen_set_callback_vector(vector or 0)

    def wake(self, vcpu: VcpuId) -> None:
        """pyvmm has raised an event: the vCPU may be polling for it, within KVM."""
        if self.active:
            self._domain.vcpus[vcpu].post(_nothing)


def _nothing() -> None:
    pass
