"""The state of one domain that hypercalls read and change."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from vmm.xenabi.console_ring import ConsoleRing
from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.grant_maps import GrantMaps
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import Call, Domid, Gfn, GuestMemory, HostFacts, Identity, Vcpu


class HypervisorState(Protocol):
    """All domains together, and the machine that they share; `vmm.hypervisor.Hypervisor` is one."""

    log: ConsoleRing

    def find(self, domid: int) -> "DomainState | None":
        """The domain of that number."""
        ...

    def domains(self) -> "Sequence[DomainState]":
        """All of them, by domid."""
        ...

    def facts(self) -> HostFacts:
        """What the host says of itself now."""
        ...

    def ended(self, domain: "DomainState") -> None:
        """A domain runs no more: tell whoever wants to know."""
        ...


class DomainState(Protocol):
    """A domain, as hypercalls see it; `vmm.domain.Domain` is one."""

    @property
    def hypervisor(self) -> HypervisorState: ...

    @property
    def domid(self) -> Domid: ...
    @property
    def handle(self) -> bytes: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def privileged(self) -> bool: ...
    @property
    def memory(self) -> GuestMemory: ...
    @property
    def events(self) -> EventChannels: ...
    @property
    def grants(self) -> GrantTable: ...
    @property
    def grant_maps(self) -> GrantMaps: ...
    @property
    def hvm_params(self) -> dict[int, int]: ...

    shutdown_reason: ShutdownReason | None

    @property
    def ended_by(self) -> ShutdownReason | None:
        """Why the domain runs no more; None while it does."""
        ...

    @property
    def unknown_hypercalls(self) -> Counter[str]: ...
    @property
    def console_write(self) -> Callable[[bytes], None]: ...
    @property
    def console_read(self) -> Callable[[int], bytes]: ...

    @property
    def vcpus(self) -> Sequence[Vcpu]: ...

    def system_time_ns(self) -> int:
        """The guest's system time, as its pvclock shows it."""
        ...

    @property
    def hypercall(self) -> Callable[[Call], int]:
        """Carries out one hypercall: what goes to RAX, as a signed number."""
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

    def set_callback(self, value: int) -> None:
        """HVM_PARAM_CALLBACK_IRQ: how vCPUs without an upcall vector are interrupted."""
        ...

    def vm_assist(self, assist: int, *, enabled: bool) -> None:
        """Turn optional behaviour on or off."""
        ...

    def place_shared_info(self, gfn: Gfn, abi: Abi) -> None:
        """XENMAPSPACE_shared_info: show the page there and start its clock."""
        ...
