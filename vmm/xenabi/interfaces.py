"""What the Xen ABI asks of the world around it; `vmm.machine.domain` provides it, tests replace it with plain objects."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from vmm.xenabi.cstruct import Abi
from vmm.xenabi.values import Gfn, Gpa, MemmapEntry, Port, QueuesRecord, RunstateTimes, VcpuId
from vmm.xenabi.vcpu_context import VcpuContext


class SharedBytes(Protocol):
    """Memory that a running guest changes too."""

    address: int
    """Where it is in this process, for as long as the domain lives."""

    gpa: Gpa
    """Where the guest has it; -1 for Xen's own pages."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """A copy of some bytes."""
        ...

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Change some bytes."""
        ...

    def words(self) -> memoryview:
        """All of it as 32-bit words, each read and written whole."""
        ...

    def fetch_or_64(self, offset_bytes: int, bits: int) -> int:
        """Set bits of a 64-bit word atomically: the word before."""
        ...

    def fetch_and_64(self, offset_bytes: int, bits: int) -> int:
        """Keep these bits of a 64-bit word alone, atomically: the word before."""
        ...

    def exchange_32(self, offset_bytes: int, expected: int, wanted: int) -> int:
        """Replace a 32-bit word if it is what is expected, atomically: the word before."""
        ...

    def mark_entries(self, numbers: Sequence[int], usual: int, ignored: int, bits: int) -> list[int]:
        """Of entries of two 32-bit words: set bits in the first, if it is the usual but for the ignored bits, atomically.

        The second words, 0xffffffff for the others."""
        ...

    def unmark_entries(self, numbers: Sequence[int], bits: int) -> None:
        """Clear bits in the first words of such entries."""
        ...


class ClockState(Protocol):
    """One vCPU's timers and run state, as hypercalls see them."""

    def runstate(self) -> RunstateTimes:
        """How the vCPU has spent its time so far."""
        ...

    def keep_runstate(self, address: int, abi: Abi, caller: "VcpuState") -> None:
        """Keep a copy of it at a guest-virtual address of the caller's."""
        ...

    def keep_time(self, address: int, caller: "VcpuState") -> None:
        """Keep a second vcpu_time_info there; XenError(ENOSYS) where the host cannot."""
        ...

    def set_timer(self, deadline_ns: int | None) -> None:
        """VIRQ_TIMER at this guest system time, or never."""
        ...

    def set_periodic_timer(self, period_ns: int | None) -> None:
        """VIRQ_TIMER every so many nanoseconds, or no more."""
        ...


class VcpuState(Protocol):
    """One vCPU, as hypercalls see it."""

    @property
    def clock(self) -> ClockState:
        """Its timers and run state."""
        ...

    @property
    def blocked(self) -> bool:
        """Whether it waits in a hypercall of its own."""
        ...

    @property
    def id(self) -> VcpuId:
        """Its number in the domain."""
        ...

    @property
    def online(self) -> bool:
        """Whether the guest uses it."""
        ...

    @property
    def info(self) -> SharedBytes | None:
        """Its vcpu_info; None until the guest has mapped shared info or registered one."""
        ...

    @property
    def initialised(self) -> bool:
        """Whether it has a state to start in, or has started."""
        ...

    def initialise(self, context: VcpuContext) -> None:
        """Set the state that it starts in; XenError(EEXIST) where it has one, XenError(EINVAL) where the CPU refuses it."""
        ...

    def up(self) -> None:
        """Let it run; XenError(EINVAL) where it has no state to start in."""
        ...

    def down(self) -> None:
        """Let it run no more, until `up`."""
        ...

    def read_virtual(self, address: int, size_bytes: int) -> bytes:
        """Bytes at a guest-virtual address, as its kernel may read them; XenError(EFAULT)."""
        ...

    def write_virtual(self, address: int, data: bytes) -> None:
        """To a guest-virtual address, as its kernel may write; XenError(EFAULT)."""
        ...

    def upcall(self) -> None:
        """Tell the guest that its vcpu_info has an event pending.  From any thread."""
        ...

    def physical(self, address: int, size_bytes: int) -> Gpa | None:
        """Where bytes at a guest-virtual address are, if all in one place; XenError(EFAULT)."""
        ...

    def place(self) -> tuple[int, bool]:
        """The host's CPU that it was last on, and whether it is on one now."""
        ...

    def set_upcall_vector(self, vector: int) -> None:
        """The vector at its LAPIC that tells it of events."""
        ...

    def set_info(self, gpa: Gpa) -> None:
        """Move its vcpu_info there, once; XenError(EINVAL)."""
        ...

    def stop_requested(self) -> bool:
        """Whether the vCPU is to leave its hypercall since its domain ends."""
        ...

    def interrupts_enabled(self) -> bool:
        """Whether the guest would take an interrupt (RFLAGS.IF)."""
        ...

    def wanted(self) -> bool:
        """Whether somebody waits for this vCPU to leave its hypercall, to end or to do something else first."""
        ...


class KernelPorts(Protocol):
    """Who carries out some of the event channels instead of this process; called with their lock held."""

    @property
    def active(self) -> bool:
        """Whether it raises events of the 2-level ABI."""
        ...

    def observe(self, wanted: bool) -> None:
        """Somebody wants to see every event raised in this process, or nobody does any more."""
        ...

    def bind_ipi(self, port: Port, vcpu: VcpuId) -> None:
        """A port interrupts a vCPU of the same domain."""
        ...

    def bind_eventfd(self, port: Port, fd: int) -> None:
        """A port's far end is an eventfd."""
        ...

    def forget(self, port: Port) -> None:
        """A port is closed, or its far end is."""
        ...

    def timer_changed(self, vcpu: VcpuId) -> None:
        """VIRQ_TIMER is bound, or no longer."""
        ...

    def stop(self) -> None:
        """The guest takes the FIFO ABI."""
        ...


class EventTable(Protocol):
    """What the C loops of the vCPUs know of the event channels, to serve them without Python, and the FIFO queues, which
    both fill.  Called with the event channels' lock held, but for `waiting`."""

    def forget_abi(self) -> None:
        """The guest has neither ABI: nothing is shown to it, the FIFO queues are empty."""
        ...

    def use_two_levels(self, shared_info: int) -> None:
        """The shared info of a 64-bit guest with the 2-level ABI is at this address."""
        ...

    def add_words(self, page: int, address: int) -> None:
        """FIFO: a page of event words is at this address."""
        ...

    def add_block(self, vcpu: VcpuId, address: int) -> None:
        """FIFO: a vCPU's control block is at this address."""
        ...

    def raise_(self, port: Port, vcpu: VcpuId, priority: int) -> bool:
        """FIFO, to a port with a word: make an event pending and queue it; whether its vCPU is to be told."""
        ...

    def queue(self, port: Port, vcpu: VcpuId, priority: int) -> bool:
        """FIFO: queue an event that is pending already; whether its vCPU is to be told."""
        ...

    def rings(self, port: Port, fd: int) -> None:
        """Who sends to a port signals an eventfd."""
        ...

    def interrupts(self, port: Port, vcpu: VcpuId, priority: int) -> None:
        """Who sends to a port interrupts a vCPU by it."""
        ...

    def times(self, port: Port, vcpu: VcpuId, priority: int) -> None:
        """A port is a vCPU's timer."""
        ...

    def forget(self, port: Port) -> None:
        """A port is served here again."""
        ...

    def queues(self) -> QueuesRecord:
        """The FIFO queues' ends, as data."""
        ...

    def restore_queues(self, record: QueuesRecord) -> None:
        """Go on with these; the words and control blocks are there."""
        ...

    def waiting(self) -> AbstractContextManager[None]:
        """Meanwhile all that interrupts is done here, since a vCPU waits here."""
        ...


class AddressSpace(Protocol):
    """A domain's guest-physical address space."""

    def map(self) -> list[MemmapEntry]:
        """The memory map that the guest is told."""
        ...

    def set_map(self, entries: list[MemmapEntry]) -> None:
        """Tell it another."""
        ...

    def move_page(self, source: Gfn, gfn: Gfn) -> None:
        """Have at one gfn what was at another.  XenError(EINVAL) where there is no page of RAM."""
        ...

    def has_page(self, gfn: Gfn) -> bool:
        """Whether there is memory at a gfn, of whatever kind."""
        ...

    def shared(self, gpa: Gpa, size_bytes: int) -> SharedBytes:
        """RAM that the guest shares with the hypervisor; XenError(EINVAL) where there is none."""
        ...

    def page(self, gfn: Gfn) -> memoryview:
        """One page's bytes, for a back end to read and write; XenError(EINVAL) where there is none."""
        ...

    def place_xen_page(self, gfn: Gfn, page: int) -> None:
        """Show one of Xen's own pages at `gfn`, and nowhere else; XenError(EINVAL, ENOSPC)."""
        ...

    def placed_at(self, page: int) -> Gfn | None:
        """Where one of Xen's own pages is shown."""
        ...

    def remove_page(self, gfn: Gfn) -> None:
        """Take the page at a gfn away; XenError(ENOENT) where there is none."""
        ...

    def map_foreign(self, gfn: Gfn, source: Any, source_gfn: Gfn, *, writable: bool = True) -> None:
        """Show a page of another domain's RAM there; `source` is that domain's memory.  XenError(EINVAL, ENOMEM)."""
        ...

    def with_page(self, gfn: Gfn, use: Callable[[memoryview], bytes]) -> bytes:
        """Do something with a page of a domain that may end at any time.  XenError(EINVAL) where there is none."""
        ...

    def unmap_foreign(self, gfn: Gfn) -> bool:
        """Take it away again; False where it is gone already."""
        ...

    def release(self, gfn: Gfn) -> bool:
        """Give a page of RAM back to the host; False where there is none."""
        ...

    def populate(self, gfn: Gfn) -> bool:
        """A fresh page of RAM there; False where that is not possible."""
        ...

    @property
    def maximum_pages(self) -> int:
        """Pages of RAM that it may have."""
        ...

    @property
    def pages(self) -> int:
        """Pages of RAM that it has."""
        ...

    @property
    def maximum_gfn(self) -> Gfn:
        """The highest gfn that has held a page."""
        ...
