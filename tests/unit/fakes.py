"""Plain objects that stand in for the world around the Xen ABI."""

import ctypes
import errno
from collections import Counter
from collections.abc import Callable, Sequence

from vmm.kvm import EventTable
from vmm.kvm._native import lib
from vmm.kvm.hostmem import mark_entries, unmark_entries
from vmm.xenabi.constants import PAGE_BYTES, ShutdownReason
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.grant_maps import GrantMaps
from vmm.xenabi.grants import TABLE_PAGES, GrantTable
from vmm.xenabi.hypercalls import dispatch
from vmm.xenabi.hypervisor_log import HypervisorLog
from vmm.xenabi.interfaces import KernelPorts, VcpuState
from vmm.xenabi.state import Call
from vmm.xenabi.structs import RunstateInfo
from vmm.xenabi.values import (
    CpuPlace,
    Domid,
    Gfn,
    Gpa,
    HostFacts,
    HypercallOutcome,
    MemmapEntry,
    RunstateTimes,
    VcpuId,
    XenError,
    XenIdentity,
)
from vmm.xenabi.vcpu_context import VcpuContext
from vmm.xenabi.versions import behaviour


def loop_sends(table: EventTable, port: int) -> bool:
    """What a vCPU's C loop does for EVTCHNOP_send; False where that is Python's."""
    return bool(lib.pyvmm_send(table.pointer, port, lib.PORT_IPI))


class Bell:
    """A back end's end of a channel, which counts."""

    def __init__(self, fd: int = -1, ring: Callable[[], None] | None = None) -> None:
        self.fd = fd
        self.rung = 0
        self._also = ring

    def ring(self) -> None:
        self.rung += 1
        if self._also is not None:
            self._also()


def channels(
    vcpus: "Sequence[Vcpu]", table: EventTable | None = None, limit: int = 4096, kernel: KernelPorts | None = None
) -> EventChannels:
    """The ports of a domain that is alone, with domid 1."""
    return EventChannels(Domid(1), vcpus, table or EventTable(len(vcpus)), lambda domid: None, limit, kernel)


class Bytes:
    """Shared memory without anybody to share it with."""

    def __init__(self, size_bytes: int = PAGE_BYTES, gpa: int = -1) -> None:
        self.gpa = Gpa(gpa)
        self.data = bytearray(size_bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.data))

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        return bytes(self.data[offset_bytes : offset_bytes + size_bytes])

    def write(self, offset_bytes: int, data: bytes) -> None:
        self.data[offset_bytes : offset_bytes + len(data)] = data

    def words(self) -> memoryview:
        return memoryview(self.data).cast("I")

    def _word(self, offset_bytes: int, change: int, *, both: bool) -> int:
        before = int.from_bytes(self.read(offset_bytes, 8), "little")
        after = before | change if both else before & change
        self.write(offset_bytes, after.to_bytes(8, "little"))
        return before

    def fetch_or_64(self, offset_bytes: int, bits: int) -> int:
        return self._word(offset_bytes, bits, both=True)

    def fetch_and_64(self, offset_bytes: int, bits: int) -> int:
        return self._word(offset_bytes, bits, both=False)

    def exchange_32(self, offset_bytes: int, expected: int, wanted: int) -> int:
        before = int.from_bytes(self.read(offset_bytes, 4), "little")
        if before == expected:
            self.write(offset_bytes, wanted.to_bytes(4, "little"))
        return before

    def mark_entries(self, numbers: Sequence[int], usual: int, ignored: int, bits: int) -> list[int]:
        return mark_entries(self.address, numbers, usual, ignored, bits)

    def unmark_entries(self, numbers: Sequence[int], bits: int) -> None:
        unmark_entries(self.address, numbers, bits)


class Vcpu:
    """A vCPU whose virtual memory is one stretch of bytes from `base` on."""

    def __init__(self, vcpu_id: int = 0, base: int = 0x1000, size_bytes: int = 1 << 16) -> None:
        self.id = VcpuId(vcpu_id)
        self.online = True
        self.is_wanted = self.blocked = False
        self.clock = self
        self.context: VcpuContext | None = None
        self.info: Bytes | None = Bytes(64)
        self.upcalls = 0
        self.vector = 0
        self.timer: int | None = None
        self.period: int | None = None
        self.base = base
        self.memory = Bytes(size_bytes)

    def _offset(self, address: int, size_bytes: int) -> int:
        offset = address - self.base
        if offset < 0 or offset + size_bytes > len(self.memory.data):
            raise XenError(errno.EFAULT)
        return offset

    def read_virtual(self, address: int, size_bytes: int) -> bytes:
        return self.memory.read(self._offset(address, size_bytes), size_bytes)

    def write_virtual(self, address: int, data: bytes) -> None:
        self.memory.write(self._offset(address, len(data)), data)

    @property
    def initialised(self) -> bool:
        return self.context is not None

    def initialise(self, context: VcpuContext) -> None:
        if self.context is not None:
            raise XenError(errno.EEXIST)
        self.context = context

    def up(self) -> None:
        if self.context is None:
            raise XenError(errno.EINVAL)
        self.online = True

    def down(self) -> None:
        self.online = False

    def upcall(self) -> None:
        self.upcalls += 1

    def runstate(self) -> RunstateTimes:
        return RunstateTimes(0, 10, 7, 2, 1, 0)

    def physical(self, address: int, size_bytes: int) -> Gpa | None:
        return Gpa(self._offset(address, size_bytes))

    def keep_time(self, address: int, caller: "VcpuState") -> None:
        caller.physical(address, 32)

    def keep_runstate(self, address: int, abi: Abi, caller: "VcpuState") -> None:
        self.write_virtual(address, RunstateInfo(**self.runstate()._asdict()).pack(abi))

    def place(self) -> tuple[int, bool]:
        return 1, False

    def set_upcall_vector(self, vector: int) -> None:
        self.vector = vector

    def set_info(self, gpa: Gpa) -> None:
        self.info = Bytes(64)

    def set_timer(self, deadline_ns: int | None) -> None:
        self.timer = deadline_ns

    def set_periodic_timer(self, period_ns: int | None) -> None:
        self.period = period_ns

    def stop_requested(self) -> bool:
        return False

    def interrupts_enabled(self) -> bool:
        return True

    def wanted(self) -> bool:
        return self.is_wanted


class Memory:
    """An address space that only remembers what was placed."""

    pages, maximum_pages = 65536, 1 << 20
    maximum_gfn = Gfn(0xFFFF)

    def __init__(self) -> None:
        self.placed: dict[int, int] = {}
        self.bytes: dict[Gfn, bytearray] = {}
        self.foreign: dict[Gfn, tuple[Memory, Gfn, bool]] = {}
        self.populated = False
        self.present = {Gfn(gfn) for gfn in range(0x1000, 0x3000)}

        self.told = [MemmapEntry(Gpa(0), 1 << 20, 1), MemmapEntry(Gpa(1 << 20), 1 << 28, 1)]

    def map(self) -> list[MemmapEntry]:
        return self.told

    def set_map(self, entries: list[MemmapEntry]) -> None:
        self.told = entries

    def has_page(self, gfn: Gfn) -> bool:
        return gfn in self.present

    def move_page(self, source: Gfn, gfn: Gfn) -> None:
        if source not in self.present or gfn > 1 << 28:
            raise XenError(errno.EINVAL)
        self.present.discard(source)
        self.present.add(gfn)

    def shared(self, gpa: Gpa, size_bytes: int) -> Bytes:
        if not self.populated:
            raise XenError(errno.EINVAL)
        return Bytes(size_bytes)

    def place_xen_page(self, gfn: Gfn, page: int) -> None:
        if gfn > 1 << 28:
            raise XenError(errno.EINVAL)
        self.placed[page] = gfn

    def placed_at(self, page: int) -> Gfn | None:
        found = self.placed.get(page)
        return None if found is None else Gfn(found)

    def release(self, gfn: Gfn) -> bool:
        if gfn not in self.present:
            return False
        self.present.discard(gfn)
        return True

    def populate(self, gfn: Gfn) -> bool:
        if gfn > 1 << 20:
            return False
        self.present.add(gfn)
        return True

    def page(self, gfn: Gfn) -> memoryview:
        if gfn not in self.present:
            raise XenError(errno.EINVAL)
        return memoryview(self.bytes.setdefault(gfn, bytearray(PAGE_BYTES)))

    def with_page(self, gfn: Gfn, use: Callable[[memoryview], bytes]) -> bytes:
        return use(self.page(gfn))

    def map_foreign(self, gfn: Gfn, source: "Memory", source_gfn: Gfn, *, writable: bool = True) -> None:
        if gfn > 1 << 28 or source_gfn not in source.present:
            raise XenError(errno.EINVAL)
        self.foreign[gfn] = source, source_gfn, writable

    def unmap_foreign(self, gfn: Gfn) -> bool:
        return self.foreign.pop(gfn, None) is not None

    def remove_page(self, gfn: Gfn) -> None:
        if gfn not in self.present:
            raise XenError(errno.ENOENT)
        self.present.discard(gfn)


class Hypervisor:
    """Domains by domid, on a host of two CPUs."""

    def __init__(self) -> None:
        self.known: dict[int, Domain] = {}
        self.log = HypervisorLog()
        self.highest_page = (1 << 20) - 1

    def find(self, domid: int) -> "Domain | None":
        return self.known.get(domid)

    def domains(self) -> "list[Domain]":
        return [self.known[domid] for domid in sorted(self.known)]

    def facts(self) -> HostFacts:
        cpus = (CpuPlace(0, 0), CpuPlace(1, 0))
        return HostFacts(cpus, 1, 2, 2600000, 1 << 20, 1 << 19, tuple(range(8)), (1000, 2000), b"AuthenticAMD", 23, 1, 2)

    def ended(self, domain: object) -> None:
        pass

    def rehooked(self) -> None:
        pass


class Domain:
    """A domain for hypercalls, with two vCPUs."""

    def __init__(self, vcpus: int = 2, *, privileged: bool = False, hypervisor: "Hypervisor | None" = None) -> None:
        self.hypervisor = hypervisor or Hypervisor()
        self.domid = Domid(0 if privileged else max(self.hypervisor.known, default=0) + 1)
        self.hypervisor.known[self.domid] = self
        self.ended_by: ShutdownReason | None = None
        self.handle = bytes(range(16))
        self.privileged = privileged
        self.identity = XenIdentity(4, 17, ".7", "cc", "me", "here", "today", "xen-3.0-x86_64 ", "")
        self.behaviour = behaviour(4, 17)
        self.hvm_params: dict[int, int] = {}
        self.shutdown_reason: ShutdownReason | None = None
        self.unknown_hypercalls: Counter[str] = Counter()
        self.vcpus = [Vcpu(index) for index in range(vcpus)]
        self.memory = Memory()
        self.shared_info = Bytes()
        self.event_table = EventTable(vcpus)
        self.events = EventChannels(self.domid, self.vcpus, self.event_table, self._ports_of)
        self.events.attach(self.shared_info, Abi.X86_64)
        self.grant_pages = Bytes(TABLE_PAGES * PAGE_BYTES)
        self.grants = GrantTable(1, self.grant_pages)
        self.grant_maps = GrantMaps(self._grants_of)
        self.assists: set[int] = set()
        self.callback = 0
        self.printed = b""
        self.ended: list[ShutdownReason] = []
        self.crashes: list[str] = []
        self.watchdogs: list[tuple[int, int]] = []

    def _ports_of(self, domid: Domid) -> "EventChannels | None":
        found = self.hypervisor.find(domid)
        return None if found is None else found.events

    def _grants_of(self, domid: Domid) -> "GrantTable | None":
        found = self.hypervisor.find(domid)
        return None if found is None else found.grants

    def hypercall(self, call: Call) -> HypercallOutcome:
        return dispatch(call)

    def console_read(self, count: int) -> bytes:
        return b""

    def console_write(self, data: bytes) -> None:
        self.printed += data

    def system_time_ns(self) -> int:
        return 10**9

    def has_pci_device(self, segment: int, bus: int, devfn: int) -> bool:
        return (segment, bus, devfn) == (0, 0, 0)

    def shutdown(self, reason: ShutdownReason) -> None:
        self.ended.append(reason)

    def watchdog(self, number: int, timeout_s: int) -> int:
        self.watchdogs.append((number, timeout_s))
        return 1

    def crash(self, reason: str) -> None:
        self.crashes.append(reason)

    def set_callback(self, value: int) -> None:
        self.callback = value

    def vm_assist(self, assist: int, *, enabled: bool) -> None:
        (self.assists.add if enabled else self.assists.discard)(assist)

    def place_shared_info(self, gfn: Gfn, abi: Abi) -> None:
        self.memory.place_xen_page(gfn, 0)

    def call(self, number: int, *args: int, abi: Abi = Abi.X86_64, vcpu: int = 0) -> Call:
        """A hypercall in hand."""
        made = Call(self, self.vcpus[vcpu])
        made.abi, made.number, made.args = abi, number, (*args, 0, 0, 0, 0, 0, 0)[:6]
        return made
