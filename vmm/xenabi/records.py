"""What event channels and grants are, as data: for whoever saves a guest or makes one like it."""

from typing import NamedTuple

from vmm.xenabi.constants import EvtchnStatusKind
from vmm.xenabi.values import Domid, Gpa, GrantRef, Port, QueuesRecord, VcpuId


class ChannelRecord(NamedTuple):
    """One port, as data.  `far` is None where the port has no far end, `remote_port` 0 where that is a back end."""

    port: Port
    kind: EvtchnStatusKind
    vcpu: VcpuId
    virq: int
    priority: int
    pending_early: bool
    remote_domid: Domid
    remote_port: Port


class EventsRecord(NamedTuple):
    """All that there is to an event channel table beside what lies in the guest's own memory."""

    channels: tuple[ChannelRecord, ...]
    fifo_blocks: tuple[tuple[VcpuId, Gpa], ...] | None
    """FIFO: where each vCPU's control block is; None with the 2-level ABI, or neither."""
    fifo_pages: tuple[Gpa, ...]
    queues: QueuesRecord


class GrantsRecord(NamedTuple):
    """A grant table as data; its entries are in Xen's own pages."""

    version: int
    frames: int
    users: tuple[tuple[GrantRef, int], ...]
    """Of each reference in use: how many use it for reading, and 2^32 times how many for writing."""
