"""What the parts of a domain ask of each other, as protocols, so that none has to know the whole."""

from collections.abc import Callable
from typing import Protocol

from vmm.devices.bus.mmio import Mmio
from vmm.devices.bus.ports import Ports
from vmm.kvm import EventTable, VcpuFd, XenFlag
from vmm.machine.memory.guest import GuestMemory
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.values import HypercallOutcome, VcpuId


class Callback:
    """The domain's one vector for all vCPUs that have none of their own (HVM_PARAM_CALLBACK_IRQ); None where it has none.

    Set by a hypercall of any vCPU's, read by all.
    """

    vector: int | None = None


class VcpuThread(Protocol):
    """A vCPU, as what belongs to it sees it."""

    @property
    def id(self) -> VcpuId:
        """Its number in the domain."""
        ...

    @property
    def kvm(self) -> VcpuFd:
        """Its descriptor of KVM's."""
        ...

    @property
    def online(self) -> bool:
        """Whether the guest uses it."""
        ...

    @property
    def thread_id(self) -> int | None:
        """The host's number of its thread, once that has started."""
        ...

    def post(self, request: Callable[[], None]) -> None:
        """Run something in its thread before it next enters the guest."""
        ...

    def is_own_thread(self) -> bool:
        """Whether the caller runs in its thread."""
        ...

    def upcall_pending(self) -> bool:
        """Whether evtchn_upcall_pending is set."""
        ...

    def write_virtual(self, address: int, data: bytes) -> None:
        """To guest-virtual memory; XenError(EFAULT)."""
        ...


class KernelState(Protocol):
    """Whether KVM carries out the domain's event channels."""

    @property
    def active(self) -> bool:
        """Whether it raises events of the 2-level ABI."""
        ...


class VcpuHost(DomainState, Protocol):
    """A domain, as its vCPUs see it."""

    @property
    def name(self) -> str:
        """What the domain is called."""
        ...

    @property
    def memory(self) -> GuestMemory:
        """Its address space."""
        ...

    @property
    def events(self) -> EventChannels:
        """Its event channels."""
        ...

    @property
    def event_table(self) -> EventTable:
        """What the C loops know of them."""
        ...

    @property
    def kernel_events(self) -> KernelState:
        """What of them is KVM's."""
        ...

    @property
    def kept_by_kvm(self) -> XenFlag:
        """What KVM does of the Xen ABI for this domain."""
        ...

    @property
    def callback(self) -> Callback:
        """The vector of vCPUs that have none of their own."""
        ...

    @property
    def ports(self) -> Ports:
        """Its I/O ports."""
        ...

    @property
    def mmio(self) -> Mmio:
        """Its memory-mapped devices."""
        ...

    @property
    def observed(self) -> bool:
        """Whether somebody wants to see all that happens: nothing is left to KVM or the C loop."""
        ...

    @property
    def runstate_flag(self) -> bool:
        """Whether run states carry a flag while they are being written."""
        ...

    def clock_ns(self) -> int:
        """The guest's system time, as KVM keeps it."""
        ...

    def hypercall(self, call: Call) -> HypercallOutcome:
        """Carry out a hypercall."""
        ...

    def refused_hypercall(self) -> None:
        """User code of the guest's has tried one."""
        ...

    def hypercall_page_written(self) -> None:
        """The guest has asked for its hypercall page, and has it."""
        ...

    def end_of_interrupt(self, vector: int) -> None:
        """A level interrupt of the IOAPIC's has been acknowledged."""
        ...

    def around_exit(self, vcpu: VcpuId, reason: int, proceed: Callable[[], None]) -> Callable[[], None]:
        """What handles an exit, with the domain's hooks around it."""
        ...

    def crash(self, reason: str, vcpu_id: int | None = None) -> None:
        """End the domain for what it did; with the registers where its own vCPU says so."""
        ...
