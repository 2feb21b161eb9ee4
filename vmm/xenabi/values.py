"""The words of the Xen ABI: numbers with their units, refusals, and what is told of a domain and its host."""

from collections.abc import Callable
from typing import NamedTuple, NewType

Domid = NewType("Domid", int)
VcpuId = NewType("VcpuId", int)
Port = NewType("Port", int)
Gpa = NewType("Gpa", int)
Gfn = NewType("Gfn", int)
GrantRef = NewType("GrantRef", int)


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


class Restart(Exception):
    """A long hypercall gives way: the guest is to issue it again, with these arguments."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.arguments = args


Notify = Callable[[], None]
