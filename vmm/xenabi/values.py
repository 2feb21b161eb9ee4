"""The words of the Xen ABI: numbers with their units, refusals, and what is told of a domain and its host."""

from collections.abc import Callable
from typing import NamedTuple, NewType

Domid = NewType("Domid", int)
VcpuId = NewType("VcpuId", int)
Port = NewType("Port", int)
Gpa = NewType("Gpa", int)
Gfn = NewType("Gfn", int)
GrantRef = NewType("GrantRef", int)


BACKEND_DOMID = Domid(0)
"""The domain that back ends in this process act for."""


class XenError(Exception):
    """A hypercall's refusal: the guest gets `-code`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class MemmapEntry(NamedTuple):
    """A stretch of the guest-physical address space; `kind` is an E820 type."""

    start: Gpa
    size_bytes: int
    kind: int


class RunstateTimes(NamedTuple):
    """A vCPU's RUNSTATE_*, since when, and the nanoseconds spent in each."""

    state: int
    state_entry_time: int
    time_running: int
    time_runnable: int
    time_blocked: int
    time_offline: int


QueuesRecord = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]
"""Where the FIFO queues of event words end, as data; their words are in the guest's memory.

First the last port of each queue, by vCPU and priority, 0 for an empty one; then, by port, the queue that it was last put
in (vCPU * 16 + priority), where that is not queue 0.
"""


class XenIdentity(NamedTuple):
    """What XENVER_* tells; texts as Xen pads them."""

    major: int
    minor: int
    extra: str
    compiler: str
    compiled_by: str
    compile_domain: str
    compile_date: str
    capabilities: str
    changeset: str


class CpuPlace(NamedTuple):
    """Where one of the host's CPUs is."""

    core: int
    socket: int


class HostFacts(NamedTuple):
    """What there is to tell of the machine that all domains share."""

    cpus: tuple[CpuPlace, ...]
    threads_per_core: int
    cores_per_socket: int
    cpu_khz: int
    total_pages: int
    free_pages: int
    capabilities: tuple[int, ...]
    """The CPU's feature words, in the order of Xen's feature sets."""
    idle_ns: tuple[int, ...]
    """How long each CPU has had nothing to do."""
    vendor: bytes
    family: int
    model: int
    stepping: int


class Restart(NamedTuple):
    """A long hypercall gives way: the guest is to issue it again, with these as its first arguments."""

    arguments: tuple[int, ...]


class Wait(NamedTuple):
    """A hypercall waits: its vCPU's thread looks whether `condition` holds each time it is stirred, until a deadline.

    It may be left earlier, as on Xen, whose guests look for themselves why they have woken up.
    """

    condition: Callable[[], bool]
    deadline_ns: int | None = None
    """In guest system time; None is never."""
    finish: Callable[[], int | Restart] = lambda: 0
    """What the guest is answered then."""


HypercallOutcome = int | Restart | Wait
"""What comes of a hypercall: a number for RAX, signed, or what is to be done before there is one."""

Notify = Callable[[], None]
