"""memory_op: the guest's address space.  xen/include/public/memory.h"""

import errno
import struct
from collections.abc import Callable

from vmm.xenabi.constants import Hypercall, MapSpace
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.hypercalls.registry import suboperation, target_of
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.structs import (
    AddToPhysmap,
    AddToPhysmapBatch,
    MemoryDomain,
    MemoryMap,
    MemoryReservation,
    RemoveFromPhysmap,
)
from vmm.xenabi.values import Gfn, HypercallOutcome, Restart, XenError

OP = Hypercall.memory_op
START_SHIFT = 6  # MEMOP_EXTENT_SHIFT: above it, the command says where a continued call goes on
MAX_EXTENT_ORDER = 9  # what Xen allows a domU
PAGES_AT_A_TIME = 512
FOREIGN_PAGES_AT_A_TIME = 64
E820_ENTRY = struct.Struct("<QQI")
MAX_MAP_ENTRIES = 128


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


@suboperation(OP, 0, "increase_reservation", arg=MemoryReservation)
def increase_reservation(call: Call, op: MemoryReservation) -> int:
    """Pages without an address are of no use to a guest that has no other than guest-physical ones: none is given."""
    target_of(call, op.domid)
    return call.args[0] >> START_SHIFT


@suboperation(OP, 1, "decrease_reservation", arg=MemoryReservation)
def decrease_reservation(call: Call, op: MemoryReservation) -> HypercallOutcome:
    """Give extents of pages back to the host: how many were."""
    return _each_extent(call, op, target_of(call, op.domid).memory.release)


@suboperation(OP, 6, "populate_physmap", arg=MemoryReservation)
def populate_physmap(call: Call, op: MemoryReservation) -> HypercallOutcome:
    """Fresh pages where there are none: how many extents got them."""
    return _each_extent(call, op, target_of(call, op.domid).memory.populate)


def _each_extent(call: Call, op: MemoryReservation, action: Callable[[Gfn], bool]) -> HypercallOutcome:
    """Do it for every page of the listed extents, from the one that the command's upper bits name, up to a failure."""
    start, word = call.args[0] >> START_SHIFT, int(call.abi)
    if op.extent_order > MAX_EXTENT_ORDER:
        return start
    pages = 1 << op.extent_order
    for done in range(start, op.nr_extents):
        if (done - start) * pages >= PAGES_AT_A_TIME or (done > start and call.vcpu.stop_requested()):
            return _go_on(call, done)
        try:
            first = int.from_bytes(call.vcpu.read_virtual(op.extent_start + done * word, word), "little")
        except XenError:
            return done
        if first % pages or not all(action(Gfn(first + index)) for index in range(pages)):
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
def add_to_physmap(call: Call, op: AddToPhysmap) -> None:
    """Show one of Xen's pages at a gfn."""
    if op.space == MapSpace.gmfn_foreign:
        raise XenError(errno.ENOSYS)  # only a batch says whose page it is
    _place(call, target_of(call, op.domid), op.space, op.idx, op.gpfn, 0)


@suboperation(OP, 23, "add_to_physmap_batch", arg=AddToPhysmapBatch)
def add_to_physmap_batch(call: Call, op: AddToPhysmapBatch) -> Restart | None:
    """Show a list of pages at gfns; each item gets an errno of its own.  A long list is gone through piece by piece."""
    target = target_of(call, op.domid)
    word = int(call.abi)
    code = "<Q" if call.abi is Abi.X86_64 else "<I"
    start = call.args[0] >> START_SHIFT
    if op.size < start:
        raise XenError(errno.EILSEQ)
    for item in range(start, op.size):
        if item - start == FOREIGN_PAGES_AT_A_TIME or (item > start and call.vcpu.stop_requested()):
            return _go_on(call, item)
        index, gpfn = (
            struct.unpack(code, call.vcpu.read_virtual(base + item * word, word))[0] for base in (op.idxs, op.gpfns)
        )
        try:
            _place(call, target, op.space, index, gpfn, op.u)
            result = 0
        except XenError as error:
            result = -error.code
        call.vcpu.write_virtual(op.errs + item * 4, struct.pack("<i", result))
    return None


def _place(call: Call, domain: DomainState, space: int, index: int, gpfn: int, foreign: int) -> None:
    if space == MapSpace.shared_info:
        if index != 0:
            raise XenError(errno.EINVAL)
        domain.place_shared_info(Gfn(gpfn), call.abi)
    elif space == MapSpace.grant_table:
        domain.memory.place_xen_page(Gfn(gpfn), domain.grants.page(index))
    elif space == MapSpace.gmfn_foreign:
        source = target_of(call, foreign)
        if source is domain:
            raise XenError(errno.EINVAL)
        domain.memory.map_foreign(Gfn(gpfn), source.memory, Gfn(index))
    elif space in (MapSpace.gmfn, MapSpace.gmfn_range, MapSpace.dev_mmio):
        raise XenError(errno.EOPNOTSUPP)
    else:
        raise XenError(errno.ENOSYS)


@suboperation(OP, 15, "remove_from_physmap", arg=RemoveFromPhysmap)
def remove_from_physmap(call: Call, op: RemoveFromPhysmap) -> None:
    """Take the page at a gfn away."""
    target_of(call, op.domid).memory.remove_page(Gfn(op.gpfn))


@suboperation(OP, 9, "memory_map", arg=MemoryMap, out=True)
def memory_map(call: Call, op: MemoryMap) -> None:
    """The domain's memory map, as E820 entries of 20 bytes."""
    entries = call.domain.memory.map()
    if op.nr_entries < len(entries):
        raise XenError(errno.EINVAL)
    if op.buffer:
        data = b"".join(E820_ENTRY.pack(entry.start, entry.size_bytes, entry.kind) for entry in entries)
        call.vcpu.write_virtual(op.buffer, data)
    op.nr_entries = len(entries)
