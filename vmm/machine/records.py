"""What a machine's parts are, as data: for whoever saves a guest or makes one like it."""

from typing import NamedTuple

from vmm.xenabi.cstruct import Abi
from vmm.xenabi.values import Domid, Gfn, MemmapEntry


class MemoryRecord(NamedTuple):
    """The layout of an address space as data, without what is in its pages."""

    regions: tuple[tuple[int, int], ...]
    """Start and size of each, bytes, in the order of their slots."""
    map: tuple[MemmapEntry, ...]
    absent: tuple[tuple[int, bytes], ...]
    """By a region's start: one byte a page, 1 where the guest has none."""
    placed: tuple[tuple[int, Gfn], ...]
    """Xen's own pages, and where each is shown."""
    foreign: tuple[tuple[Gfn, Domid, Gfn], ...]
    """Where other domains' pages are shown, and whose they are."""
    pages: int
    maximum_gfn: Gfn


class ClockRecord(NamedTuple):
    """A vCPU's clock as data."""

    time_at: int | None
    """Where the guest has its vcpu_time_info, guest-physical."""
    runstate_at: tuple[int, Abi] | None
    """Where it wants a copy of its run state, guest-virtual, and in which ABI."""
    deadline_ns: int | None
    """When its timer is due, in guest system time."""
    period_ns: int | None
