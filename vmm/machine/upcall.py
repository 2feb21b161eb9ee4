"""How one vCPU is interrupted for its events: by a vector at its LAPIC, or by the domain's callback vector past it.

`notify` from any thread; all else in the vCPU's own.
"""

import os
from typing import Protocol

from vmm.boot import acpi
from vmm.kvm import EventTable, MsiRoute, VmFd
from vmm.kvm.timer import Timer
from vmm.machine.irq_routing import Gsis
from vmm.machine.parts import Callback, KernelState, VcpuThread

CALLBACK_CHECK_NS = 10_000_000


class Upcall(Protocol):
    """What delivers events to a vCPU."""

    vector: int
    """Its own upcall vector, 0 where it has none."""

    def notify(self) -> None:
        """Interrupt the guest for its pending events."""
        ...


class UpcallLine:
    """One vCPU's line.  Its eventfd is KVM's to turn into the vector that the guest chose."""

    def __init__(
        self, vcpu: VcpuThread, vm: VmFd, gsis: Gsis, table: EventTable, callback: Callback, kernel: KernelState
    ) -> None:
        self._vcpu = vcpu
        self._gsis = gsis
        self._table = table
        self._callback = callback
        self._kernel = kernel
        self.vector = 0
        self._due = False
        self._gsi = gsis.allocate()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.check = Timer(self._check)
        vm.irqfd(self.fd, self._gsi)

    def route(self, vector: int) -> None:
        """HVMOP_set_evtchn_upcall_vector; what was pending before had nowhere to go."""
        self._gsis.route(self._gsi, MsiRoute.to_lapic(acpi.apic_id(self._vcpu.id), vector))
        self.vector = vector
        self._table.interrupt_by(self._vcpu.id, self.fd)
        if self._kernel.active:
            self._vcpu.post(lambda: self._vcpu.kvm.xen_set_upcall_vector(vector))

    def notify(self) -> None:
        """At its own vector, else by the domain's."""
        if self.vector:
            os.eventfd_write(self.fd, 1)
        elif self._callback.vector is not None and not self._due:
            self._due = True
            self._vcpu.post(self._inject)

    def _inject(self) -> None:
        # Linux before 6.0 does not acknowledge this vector at its LAPIC, so it has to come past it.
        self._due = False
        vector = self._callback.vector
        if vector is not None and self._vcpu.upcall_pending() and not self._kernel.active:
            self._vcpu.kvm.open_lint0()
            self._vcpu.kvm.interrupt(vector)
            self.check.arm(CALLBACK_CHECK_NS)

    def _check(self) -> None:
        # The line is level triggered.  The guest may have masked LINT0 again between the interrupt and its delivery.
        if self._vcpu.upcall_pending():
            self.notify()

    def close(self) -> None:
        """Release the descriptors; the vCPU's thread has ended."""
        self.check.close()
        os.close(self.fd)
