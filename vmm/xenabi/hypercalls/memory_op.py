"""memory_op: the guest's address space.  xen/include/public/memory.h"""

import errno
import struct
from collections.abc import Callable, Iterable

from vmm.xenabi.constants import DOMID_SELF, Hypercall, MapSpace
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.hypercalls.registry import exists, is_back_ends, suboperation, target_of
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.structs import (
    AddToPhysmap,
    AddToPhysmapBatch,
    ForeignMemoryMap,
    MachphysMfnList,
    MemAccessOp,
    MemAcquireResource,
    MemoryDomain,
    MemoryExchange,
    MemoryMap,
    MemoryReservation,
    PodTarget,
    RemoveFromPhysmap,
    ReservedDeviceMemoryMap,
    VnumaTopologyInfo,
)
from vmm.xenabi.values import Gfn, Gpa, HypercallOutcome, MemmapEntry, Restart, XenError

OP = Hypercall.memory_op
START_SHIFT = 6  # MEMOP_EXTENT_SHIFT: above it, the command says where a continued call goes on
MAX_EXTENT_ORDER = 9  # what Xen allows a domU
PAGES_AT_A_TIME = 512
FOREIGN_PAGES_AT_A_TIME = 64
RDM_ALL = 1
INVALID_GFN = (1 << 64) - 1
POPULATE_ON_DEMAND = 1 << 16
E820_ENTRY = struct.Struct("<QQI")
MAX_MAP_ENTRIES = 1024
"""E820MAX: of a map that a guest is told."""
MOST_EXTENTS = 0xFFFF_FFFF >> START_SHIFT
ULONG_MAX = (1 << 64) - 1


@suboperation(OP, 2, "maximum_ram_page")
def maximum_ram_page(call: Call) -> int:
    """The number of the host's last page, which every guest may know."""
    if call.args[0] >> START_SHIFT:
        raise XenError(errno.EINVAL)
    return call.domain.hypervisor.highest_page


@suboperation(OP, 3, "current_reservation", arg=MemoryDomain)
def current_reservation(call: Call, op: MemoryDomain) -> int:
    """Pages that the domain has now."""
    return target_of(call, op.domid).memory.pages


@suboperation(OP, 4, "maximum_reservation", arg=MemoryDomain)
def maximum_reservation(call: Call, op: MemoryDomain) -> int:
    """Pages that the domain may have."""
    return target_of(call, op.domid).memory.maximum_pages


def _done_before(call: Call) -> int:
    """These commands answer how many extents are done, and no errors: those before, where their list cannot be found."""
    return call.args[0] >> START_SHIFT


@suboperation(OP, 0, "increase_reservation", arg=MemoryReservation, unreadable=_done_before)
def increase_reservation(call: Call, op: MemoryReservation) -> int:
    """Pages without an address are of no use to a guest that has no other than guest-physical ones: none is given."""
    return _done_before(call)


@suboperation(OP, 1, "decrease_reservation", arg=MemoryReservation, unreadable=_done_before)
def decrease_reservation(call: Call, op: MemoryReservation) -> HypercallOutcome:
    """Give extents of pages back to the host: how many were."""
    return _each_extent(call, op, lambda target, first, count: all(map(target.memory.release, _gfns(first, count))))


@suboperation(OP, 6, "populate_physmap", arg=MemoryReservation, unreadable=_done_before)
def populate_physmap(call: Call, op: MemoryReservation) -> HypercallOutcome:
    """Fresh pages where there are none: how many extents got them."""
    if op.mem_flags & POPULATE_ON_DEMAND:  # nobody may populate its own memory so, nor is another's
        return _done_before(call)

    def populate(target: DomainState, first: int, count: int) -> bool:
        memory = target.memory
        if memory.pages + count > memory.maximum_pages:
            return False
        done = list(map(memory.populate, _gfns(first, count)))  # Xen has taken all pages before it looks where
        return all(done)

    return _each_extent(call, op, populate)


def _gfns(first: int, count: int) -> Iterable[Gfn]:
    return map(Gfn, range(first, first + count))


def _each_extent(call: Call, op: MemoryReservation, action: Callable[[DomainState, int, int], bool]) -> HypercallOutcome:
    """Do it for the listed extents (first page, pages), from the one that the command's upper bits name to a failure."""
    start, word = call.args[0] >> START_SHIFT, int(call.abi)
    if op.nr_extents > MOST_EXTENTS or op.extent_order > MAX_EXTENT_ORDER or start >= op.nr_extents:
        return start
    try:
        target = target_of(call, op.domid)
    except XenError:
        return start
    pages = 1 << op.extent_order
    for done in range(start, op.nr_extents):
        if (done - start) * pages >= PAGES_AT_A_TIME or (done > start and call.vcpu.stop_requested()):
            return _go_on(call, done)
        try:
            first = int.from_bytes(call.vcpu.read_virtual(op.extent_start + done * word, word), "little")
        except XenError:
            return done
        if not action(target, first, pages):
            return done
    return op.nr_extents


def _go_on(call: Call, done: int) -> Restart:
    """Issue the call again, for what comes behind the first `done` items of its list."""
    return Restart((call.args[0] & (1 << START_SHIFT) - 1 | done << START_SHIFT,))


@suboperation(OP, 14, "maximum_gpfn", arg=MemoryDomain)
def maximum_gpfn(call: Call, op: MemoryDomain) -> int:
    """The highest gfn that has ever held a page."""
    return target_of(call, op.domid).memory.maximum_gfn


@suboperation(OP, 7, "add_to_physmap", arg=AddToPhysmap)
def add_to_physmap(call: Call, op: AddToPhysmap) -> Restart | None:
    """Show one of Xen's pages at a gfn, or what was at another."""
    if op.space == MapSpace.gmfn_foreign:
        raise XenError(errno.ENOSYS)  # only a batch says whose page it is
    target, start = _translated(call, op.domid), call.args[0] >> START_SHIFT
    if op.gpfn == INVALID_GFN:
        raise XenError(errno.EINVAL)
    if op.space != MapSpace.gmfn_range:
        _place(call, target, op.space, op.idx, op.gpfn, 0)
        return None
    if op.size < start:
        raise XenError(errno.EILSEQ)
    if max(op.gpfn, op.idx) + op.size > ULONG_MAX:
        raise XenError(errno.EOVERFLOW)
    for item in range(start, op.size):
        if item - start == FOREIGN_PAGES_AT_A_TIME or (item > start and call.vcpu.stop_requested()):
            return _go_on(call, item)
        target.memory.move_page(Gfn(op.idx + item), Gfn(op.gpfn + item))
    return None


@suboperation(OP, 23, "add_to_physmap_batch", arg=AddToPhysmapBatch)
def add_to_physmap_batch(call: Call, op: AddToPhysmapBatch) -> Restart | None:
    """Show a list of pages at gfns; each item gets an errno of its own.  A long list is gone through piece by piece."""
    if op.space == MapSpace.gmfn_range:
        raise XenError(errno.EOPNOTSUPP)
    target = _translated(call, op.domid)
    word = int(call.abi)
    code = "<Q" if call.abi is Abi.X86_64 else "<I"
    start = call.args[0] >> START_SHIFT
    if op.size < start or (op.size == start and start):
        raise XenError(errno.EILSEQ)
    for item in range(start, op.size):
        if item - start == FOREIGN_PAGES_AT_A_TIME or (item > start and call.vcpu.stop_requested()):
            return _go_on(call, item)
        index, gpfn = (
            struct.unpack(code, call.vcpu.read_virtual(base + item * word, word))[0] for base in (op.idxs, op.gpfns)
        )
        if gpfn == INVALID_GFN:
            raise XenError(errno.EINVAL)
        try:
            _place(call, target, op.space, index, gpfn, op.u)
            result = 0
        except XenError as error:
            result = -error.code
        call.vcpu.write_virtual(op.errs + item * 4, struct.pack("<i", result))
    return None


def _translated(call: Call, domid: int) -> DomainState:
    """The domain whose gfns are meant.  XenError(EACCES) for a PV one, as a back end's is for all that a guest knows."""
    if is_back_ends(call.domain, domid):
        raise XenError(errno.EACCES)
    return target_of(call, domid)


def _place(call: Call, domain: DomainState, space: int, index: int, gpfn: int, foreign: int) -> None:
    if space == MapSpace.shared_info:
        if index != 0:
            raise XenError(errno.EINVAL)
        domain.place_shared_info(Gfn(gpfn), call.abi)
    elif space == MapSpace.grant_table:
        domain.memory.place_xen_page(Gfn(gpfn), domain.grants.page(index & 0xFFFF_FFFF))  # as Xen takes it
    elif space == MapSpace.gmfn_foreign:
        if not call.domain.privileged:
            raise XenError(errno.EPERM)
        source = target_of(call, foreign)
        if source is domain:
            raise XenError(errno.EINVAL)
        domain.memory.map_foreign(Gfn(gpfn), source.memory, Gfn(index))
    elif space == MapSpace.gmfn:
        domain.memory.move_page(Gfn(index), Gfn(gpfn))
    elif space == MapSpace.dev_mmio:
        raise XenError(errno.EACCES)
    else:
        raise XenError(errno.EINVAL)


@suboperation(OP, 15, "remove_from_physmap", arg=RemoveFromPhysmap)
def remove_from_physmap(call: Call, op: RemoveFromPhysmap) -> None:
    """Take the page at a gfn away."""
    _translated(call, op.domid).memory.remove_page(Gfn(op.gpfn))


@suboperation(OP, 9, "memory_map", arg=MemoryMap, out=True)
def memory_map(call: Call, op: MemoryMap) -> None:
    """The domain's memory map, as E820 entries of 20 bytes."""
    entries = call.domain.memory.map()
    if not entries:
        raise XenError(errno.ENOSYS)
    told = entries[: op.nr_entries]
    data = b"".join(E820_ENTRY.pack(entry.start, entry.size_bytes, entry.kind) for entry in told)
    call.vcpu.write_virtual(op.buffer, data)
    op.nr_entries = len(told)


@suboperation(OP, 13, "set_memory_map", arg=ForeignMemoryMap)
def set_memory_map(call: Call, op: ForeignMemoryMap) -> None:
    """Change what memory_map tells a domain, its own caller's perhaps."""
    if op.map_nr_entries > MAX_MAP_ENTRIES:
        raise XenError(errno.EINVAL)
    target = target_of(call, op.domid)
    data = call.vcpu.read_virtual(op.map_buffer, op.map_nr_entries * E820_ENTRY.size)
    target.memory.set_map([MemmapEntry(Gpa(start), size, kind) for start, size, kind in E820_ENTRY.iter_unpack(data)])


# ----------------------------------------------------------------- what there is nothing of, with Xen's answers


def _pod_target(call: Call, op: PodTarget) -> None:
    if is_back_ends(call.domain, op.domid):
        raise XenError(errno.EINVAL)
    target = target_of(call, op.domid)
    if not call.domain.privileged:
        raise XenError(errno.EPERM)
    op.tot_pages, op.pod_cache_pages, op.pod_entries = target.memory.pages, 0, 0


@suboperation(OP, 16, "set_pod_target", arg=PodTarget, out=True)
def set_pod_target(call: Call, op: PodTarget) -> None:
    """No domain is populated on demand."""
    _pod_target(call, op)
    if op.target_pages > target_of(call, op.domid).memory.maximum_pages:
        raise XenError(errno.EINVAL)


@suboperation(OP, 17, "get_pod_target", arg=PodTarget, out=True)
def get_pod_target(call: Call, op: PodTarget) -> None:
    """No domain is populated on demand."""
    _pod_target(call, op)


@suboperation(OP, 5, "machphys_mfn_list", arg=MachphysMfnList, out=True)
def machphys_mfn_list(call: Call, op: MachphysMfnList) -> None:
    """There is no table of machine frames."""
    op.nr_extents = 0


@suboperation(OP, 10, "machine_memory_map")
def machine_memory_map(call: Call) -> None:
    """The machine's own memory map is for a dom0, and not for a PVH one."""
    raise XenError(call.domain.behaviour.no_machine_map)


@suboperation(OP, 18, "get_sharing_freed_pages")
def get_sharing_freed_pages(call: Call) -> int:
    """Pages are not shared between domains."""
    return 0


@suboperation(OP, 19, "get_sharing_shared_pages")
def get_sharing_shared_pages(call: Call) -> int:
    """Pages are not shared between domains."""
    return 0


@suboperation(OP, 21, "access_op", arg=MemAccessOp)
def access_op(call: Call, op: MemAccessOp) -> None:
    """Restrict the pages of another domain: nobody can watch one."""
    found = None if op.domid == DOMID_SELF else call.domain.hypervisor.find(op.domid)
    if found is call.domain:
        raise XenError(errno.EPERM)
    if found is None:
        raise XenError(errno.EINVAL if is_back_ends(call.domain, op.domid) else errno.ESRCH)
    raise XenError(errno.ENODEV if call.domain.privileged else errno.EPERM)


@suboperation(OP, 24, "claim_pages", arg=MemoryReservation)
def claim_pages(call: Call, op: MemoryReservation) -> None:
    """Set memory aside for a domain that is being built: the host's is not pyvmm's to set aside."""
    if op.extent_start or op.extent_order or op.mem_flags or not exists(call.domain, op.domid):
        raise XenError(errno.EINVAL)
    raise XenError(errno.ENOSYS if call.domain.privileged else errno.EPERM)


@suboperation(OP, 26, "get_vnumainfo", arg=VnumaTopologyInfo)
def get_vnumainfo(call: Call, op: VnumaTopologyInfo) -> None:
    """No domain has a NUMA topology."""
    if op.pad:
        raise XenError(errno.EINVAL)
    target_of(call, op.domid)
    raise XenError(errno.EOPNOTSUPP)


@suboperation(OP, 27, "reserved_device_memory_map", arg=ReservedDeviceMemoryMap, out=True)
def reserved_device_memory_map(call: Call, op: ReservedDeviceMemoryMap) -> None:
    """No device of the machine's has memory reserved."""
    if op.flags & ~RDM_ALL:
        raise XenError(errno.EINVAL)
    op.nr_entries = 0


def _may_ask_for_resources(call: Call) -> None:
    if not call.domain.privileged and not call.domain.behaviour.has_resources:
        raise XenError(errno.EACCES)


@suboperation(OP, 28, "acquire_resource", arg=MemAcquireResource, check=_may_ask_for_resources)
def acquire_resource(call: Call, op: MemAcquireResource) -> None:
    """Map what belongs to another domain but is not its memory: refused to a domU."""
    if op.pad or op.frame >> 32 or op.frame + op.nr_frames >> 32:
        raise XenError(errno.EINVAL)
    if op.domid == DOMID_SELF:
        raise XenError(errno.ESRCH)
    if target_of(call, op.domid) is call.domain:
        raise XenError(errno.EPERM)
    raise XenError(errno.ENOSYS)


@suboperation(OP, 11, "exchange", arg=MemoryExchange, out=True)
def exchange(call: Call, op: MemoryExchange) -> None:
    """Swap pages for others of another size; of no use to a guest that does not know where its pages are."""
    if max(op.in_extent_order, op.out_extent_order) > MAX_EXTENT_ORDER:
        raise XenError(errno.EPERM)
    if (
        op.nr_exchanged > op.in_nr_extents
        or op.in_domid != op.out_domid
        or op.in_nr_extents > ULONG_MAX >> op.in_extent_order
        or op.out_nr_extents > ULONG_MAX >> op.out_extent_order
        or op.in_nr_extents << op.in_extent_order != op.out_nr_extents << op.out_extent_order
    ):
        raise XenError(errno.EINVAL)
    if op.nr_exchanged == op.in_nr_extents:
        return
    target_of(call, op.in_domid)
    raise XenError(errno.EOPNOTSUPP)
