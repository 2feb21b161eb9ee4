"""The state of one domain that hypercalls read and change."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import Call, Domid, Gfn, GuestMemory, Identity, Vcpu


class DomainState(Protocol):
    """A domain, as hypercalls see it; `vmm.domain.Domain` is one."""

    domid: Domid
    handle: bytes
    identity: Identity
    privileged: bool
    memory: GuestMemory
    events: EventChannels
    grants: GrantTable
    hvm_params: dict[int, int]
    shutdown_reason: ShutdownReason | None
    unknown_hypercalls: Counter[str]
    console_write: Callable[[bytes], None]
    console_read: Callable[[int], bytes]

    @property
    def vcpus(self) -> Sequence[Vcpu]: ...

    def system_time_ns(self) -> int:
        """The guest's system time, as its pvclock shows it."""
        ...

    @property
    def hypercall(self) -> Callable[[Call], int]:
        """Carries out one hypercall: what goes to RAX, as a signed number."""
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
