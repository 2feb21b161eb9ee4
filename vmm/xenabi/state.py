"""The state of one domain that hypercalls read and change."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.cstruct import Abi, Struct
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.grant_maps import GrantMaps
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.hypervisor_log import HypervisorLog
from vmm.xenabi.interfaces import AddressSpace, VcpuState
from vmm.xenabi.values import Domid, Gfn, HostFacts, HypercallOutcome, XenIdentity
from vmm.xenabi.versions import Behaviour


class HypervisorState(Protocol):
    """All domains together, and the machine that they share; `vmm.machine.hypervisor.Hypervisor` is one."""

    log: HypervisorLog

    def find(self, domid: int) -> "DomainState | None":
        """The domain of that number."""
        ...

    def domains(self) -> "Sequence[DomainState]":
        """All of them, by domid."""
        ...

    @property
    def highest_page(self) -> int:
        """The number of the host's last page of RAM."""
        ...

    def facts(self) -> HostFacts:
        """What the host says of itself now."""
        ...

    def rehooked(self) -> None:
        """The hooks of a domain have changed."""
        ...

    def ended(self, domain: "DomainState") -> None:
        """A domain runs no more: tell whoever wants to know."""
        ...


class DomainState(Protocol):
    """A domain, as hypercalls see it; `vmm.machine.domain.Domain` is one."""

    @property
    def hypervisor(self) -> HypervisorState:
        """The hypervisor of this domain and all others."""
        ...

    @property
    def domid(self) -> Domid:
        """Its number."""
        ...

    @property
    def handle(self) -> bytes:
        """Its UUID, 16 bytes."""
        ...

    @property
    def identity(self) -> XenIdentity:
        """What it is told of the hypervisor."""
        ...

    @property
    def privileged(self) -> bool:
        """Whether it may make the toolstack's hypercalls."""
        ...

    @property
    def memory(self) -> AddressSpace:
        """Its address space."""
        ...

    @property
    def events(self) -> EventChannels:
        """Its event channels."""
        ...

    @property
    def behaviour(self) -> Behaviour:
        """That of the version of Xen which the domain is shown."""
        ...

    @property
    def grants(self) -> GrantTable:
        """Its grant table."""
        ...

    @property
    def grant_maps(self) -> GrantMaps:
        """What it has mapped of others' grants."""
        ...

    @property
    def hvm_params(self) -> dict[int, int]:
        """HVM_PARAM_* that have been set, by index."""
        ...

    shutdown_reason: ShutdownReason | None

    @property
    def ended_by(self) -> ShutdownReason | None:
        """Why the domain runs no more; None while it does."""
        ...

    @property
    def unknown_hypercalls(self) -> Counter[str]:
        """Hypercalls that nobody carries out, by name, and how often."""
        ...

    @property
    def console_write(self) -> Callable[[bytes], None]:
        """CONSOLEIO_write: takes what is printed."""
        ...

    @property
    def console_read(self) -> Callable[[int], bytes]:
        """CONSOLEIO_read: at most so many bytes that were typed."""
        ...

    @property
    def vcpus(self) -> Sequence[VcpuState]:
        """Its vCPUs, by number."""
        ...

    def system_time_ns(self) -> int:
        """The guest's system time, as its pvclock shows it."""
        ...

    def hypercall(self, call: "Call") -> HypercallOutcome:
        """Carry out one hypercall, in its vCPU's thread."""
        ...

    def has_pci_device(self, segment: int, bus: int, devfn: int) -> bool:
        """Whether a function is on its PCI bus."""
        ...

    def shutdown(self, reason: ShutdownReason) -> None:
        """The guest asks to end; its vCPUs stop."""
        ...

    def crash(self, reason: str) -> None:
        """End the domain for what it did."""
        ...

    def watchdog(self, number: int, timeout_s: int) -> int:
        """Start an unused one for 0, and answer its number; set another again, or stop it with 0.  XenError(EINVAL)."""
        ...

    def set_callback(self, value: int) -> None:
        """HVM_PARAM_CALLBACK_IRQ: how vCPUs without an upcall vector are interrupted."""
        ...

    def vm_assist(self, assist: int, *, enabled: bool) -> None:
        """Turn optional behaviour on or off."""
        ...

    def place_shared_info(self, gfn: Gfn, abi: Abi) -> None:
        """XENMAPSPACE_shared_info: show the page there and start its clock."""
        ...


class Call:
    """One hypercall in hand: who calls, in which ABI, with which arguments.  A vCPU reuses its own."""

    __slots__ = ("abi", "args", "domain", "header", "number", "operand", "vcpu")

    def __init__(self, domain: DomainState, vcpu: VcpuState) -> None:
        self.domain = domain
        self.vcpu = vcpu
        self.abi = Abi.X86_64
        self.number = 0
        self.args: tuple[int, ...] = ()
        self.operand: Struct | None = None
        """The structure behind its pointer, once read; for whoever looks on."""
        self.header: Struct | None = None
        """What stands before it where the command is in memory, too."""
