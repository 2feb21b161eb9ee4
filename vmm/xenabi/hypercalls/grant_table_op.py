"""grant_table_op: setting the grant table up, and using what others have granted.  xen/include/public/grant_table.h"""

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vmm.xenabi.constants import DOMID_SELF, PAGE_BYTES, Hypercall
from vmm.xenabi.grant_maps import Mapping
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.hypercalls.registry import is_back_ends, suboperation, target_of
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.structs import (
    GnttabCopy,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabUnmapGrantRef,
)
from vmm.xenabi.values import Gfn, GrantRef, HypercallOutcome, Restart, XenError

OP = Hypercall.grant_table_op
STATUS_OKAY = 0
STATUS_GENERAL_ERROR = -1
STATUS_BAD_DOMAIN = -2
STATUS_BAD_REFERENCE = -3
STATUS_BAD_HANDLE = -4
STATUS_BAD_ADDRESS = -5
STATUS_PERMISSION_DENIED = -8
STATUS_BAD_PAGE = -9
STATUS_BAD_COPY = -10
STATUS_AGAIN = -12
STATUS_NO_SPACE = -13

MAP_DEVICE, MAP_HOST, MAP_READ_ONLY, MAP_APPLICATION, MAP_CONTAINS_PTE = (1 << bit for bit in range(5))
COPY_SOURCE_IS_GRANT, COPY_DEST_IS_GRANT = 1, 2
AT_A_TIME = 128
BACKEND_ENTRIES = 512
"""The length that a grant table has where it belongs to a domain that back ends act for."""


class _Refused(Exception):
    """A GNTST_* other than okay."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _count(call: Call) -> int:
    """How many operations there are.  XenError(EINVAL) for a negative number."""
    count = call.args[2] & 0xFFFF_FFFF
    if count >> 31:
        raise XenError(errno.EINVAL)
    return count


def _exactly_one(call: Call) -> None:
    if _count(call) != 1:
        raise XenError(errno.EINVAL)


def _not_negative(call: Call) -> None:
    _count(call)


def _table_of(call: Call, domid: int) -> GrantTable:
    try:
        return target_of(call, domid).grants
    except XenError as error:
        raise _Refused(STATUS_BAD_DOMAIN if error.code == errno.ESRCH else STATUS_PERMISSION_DENIED) from None


@suboperation(OP, 6, "query_size", arg=GnttabQuerySize, out=True, check=_exactly_one)
def query_size(call: Call, op: GnttabQuerySize) -> None:
    """How long the table is, and how long it may get."""
    try:
        table = _table_of(call, op.dom)
        op.nr_frames, op.max_nr_frames = table.frames, table.max_frames
        op.status = STATUS_OKAY
    except _Refused as refused:
        op.status = refused.status


@suboperation(OP, 2, "setup_table", arg=GnttabSetupTable, out=True, check=_exactly_one)
def setup_table(call: Call, op: GnttabSetupTable) -> None:
    """Make the table so long, and say at which gfns its frames have been placed (all ones: nowhere yet)."""
    try:
        table = _table_of(call, op.dom)
        if op.nr_frames > table.max_frames:
            raise _Refused(STATUS_GENERAL_ERROR)
        table.grow(op.nr_frames)
        word_bytes = int(call.abi)
        nowhere = (1 << 8 * word_bytes) - 1
        placed = [target_of(call, op.dom).memory.placed_at(table.page(index)) for index in range(op.nr_frames)]
        data = b"".join((nowhere if gfn is None else gfn).to_bytes(word_bytes, "little") for gfn in placed)
        try:
            call.vcpu.write_virtual(op.frame_list, data)
        except XenError:
            raise _Refused(STATUS_BAD_ADDRESS) from None
        op.status = STATUS_OKAY
    except _Refused as refused:
        op.status = refused.status


@suboperation(OP, 8, "set_version", arg=GnttabSetVersion, out=True, check=_not_negative)
def set_version(call: Call, op: GnttabSetVersion) -> None:
    """Choose the layout of the entries."""
    if op.version not in (1, 2):
        raise XenError(errno.EINVAL)
    call.domain.grants.set_version(op.version)


@suboperation(OP, 10, "get_version", arg=GnttabGetVersion, out=True, check=_not_negative)
def get_version(call: Call, op: GnttabGetVersion) -> None:
    """The layout in use."""
    op.version = target_of(call, op.dom).grants.version


# -------------------------------------------------------------------------- using what others have granted


Operand = TypeVar("Operand", GnttabMapGrantRef, GnttabUnmapGrantRef, GnttabCopy, GnttabSwapGrantRef)


def _each(call: Call, kind: type[Operand], action: Callable[[Operand], None]) -> HypercallOutcome:
    """Carry out a list of operations (address, count), each with a status of its own; a long list gives way."""
    command, address, count = call.args[0], call.args[1], _count(call)
    size = kind.sizeof(call.abi)
    for done in range(count):
        if done == AT_A_TIME or (done and call.vcpu.stop_requested()):
            return Restart((command, address + done * size, count - done))
        place = address + done * size
        data = call.vcpu.read_virtual(place, size)
        operation = kind.unpack(data, call.abi)
        try:
            action(operation)
            status = STATUS_OKAY
        except _Refused as refused:
            status = refused.status
        operation.status = status
        call.vcpu.write_virtual(place, operation.pack_over(data, call.abi))
    return 0


def _granter(domain: DomainState, domid: int) -> DomainState:
    found = domain if domid == domain.domid else domain.hypervisor.find(domid)
    if found is None:  # a back end's domain is there, but has granted nothing
        raise _Refused(STATUS_BAD_REFERENCE if is_back_ends(domain, domid) else STATUS_BAD_DOMAIN)
    return found


def _acquire(domain: DomainState, granter: DomainState, ref: int, *, write: bool) -> Gfn:
    if not granter.grants.has(ref):
        raise _Refused(STATUS_BAD_REFERENCE)
    try:
        return granter.grants.acquire(GrantRef(ref), domain.domid, write=write)
    except XenError:
        raise _Refused(STATUS_GENERAL_ERROR) from None


@suboperation(OP, 0, "map_grant_ref", names=("uop", "count"))
def map_grant_ref(call: Call) -> HypercallOutcome:
    """Show granted pages at gfns of the caller's: what is behind `uop` is a list."""
    domain = call.domain

    def map_one(op: GnttabMapGrantRef) -> None:
        if not op.flags & (MAP_HOST | MAP_DEVICE):
            raise _Refused(STATUS_BAD_REFERENCE)
        if op.flags & (MAP_DEVICE | MAP_APPLICATION | MAP_CONTAINS_PTE):
            raise _Refused(STATUS_GENERAL_ERROR)  # no device needs an address, and no page tables are Xen's
        granter, write = _granter(domain, op.dom), not op.flags & MAP_READ_ONLY
        gfn = _acquire(domain, granter, op.ref, write=write)
        place = Gfn(op.host_addr // PAGE_BYTES)
        status = STATUS_BAD_ADDRESS
        if granter is not domain:
            try:
                domain.memory.map_foreign(place, granter.memory, gfn, writable=write)
                status = STATUS_OKAY
            except XenError:
                pass
        handle = None
        if status == STATUS_OKAY:
            handle = domain.grant_maps.add(Mapping(granter.domid, GrantRef(op.ref), place, write))
        if handle is None:
            if status == STATUS_OKAY:
                domain.memory.unmap_foreign(place)
                status = STATUS_NO_SPACE
            granter.grants.release(GrantRef(op.ref), write=write)
            raise _Refused(status)
        op.handle, op.dev_bus_addr = handle, gfn * PAGE_BYTES

    return _each(call, GnttabMapGrantRef, map_one)


@suboperation(OP, 1, "unmap_grant_ref", names=("uop", "count"))
def unmap_grant_ref(call: Call) -> HypercallOutcome:
    """End such mappings."""
    domain = call.domain

    def unmap_one(op: GnttabUnmapGrantRef) -> None:
        mapping = domain.grant_maps.take(op.handle, Gfn(op.host_addr // PAGE_BYTES))
        if mapping is None:
            raise _Refused(STATUS_BAD_HANDLE)
        domain.memory.unmap_foreign(mapping.gfn)
        domain.grant_maps.end(mapping)

    return _each(call, GnttabUnmapGrantRef, unmap_one)


class _End(NamedTuple):
    """One end of a copy."""

    domid: int
    place: int
    offset: int
    granted: bool


@suboperation(OP, 5, "copy", names=("uop", "count"))
def copy(call: Call) -> HypercallOutcome:
    """Copy bytes between pages, granted or one's own."""
    domain = call.domain

    def copy_one(op: GnttabCopy) -> None:
        if not op.len and not domain.behaviour.looks_at_empty_copies:
            return
        source = _End(op.source_domid, op.source, op.source_offset, bool(op.flags & COPY_SOURCE_IS_GRANT))
        dest = _End(op.dest_domid, op.dest, op.dest_offset, bool(op.flags & COPY_DEST_IS_GRANT))
        source_owner, dest_owner = _owner(domain, source), _owner(domain, dest)
        data = _with_page(
            domain, source_owner, source, False, lambda page: bytes(page[source.offset : source.offset + op.len])
        )

        def put(page: memoryview) -> bytes:
            if max(source.offset, dest.offset) + op.len > PAGE_BYTES:
                raise _Refused(STATUS_BAD_COPY)
            page[dest.offset : dest.offset + op.len] = data
            return data

        _with_page(domain, dest_owner, dest, True, put)

    return _each(call, GnttabCopy, copy_one)


def _owner(domain: DomainState, end: _End) -> DomainState | None:
    """None for a domain that back ends act for: it is there, but has granted nothing."""
    if end.domid == DOMID_SELF:
        return domain
    if not end.granted:  # even of its own id
        raise _Refused(STATUS_PERMISSION_DENIED)
    return None if is_back_ends(domain, end.domid) else _granter(domain, end.domid)


def _with_page(
    domain: DomainState, owner: DomainState | None, end: _End, write: bool, use: Callable[[memoryview], bytes]
) -> bytes:
    if owner is None:
        raise _Refused(STATUS_GENERAL_ERROR if end.place < BACKEND_ENTRIES else STATUS_BAD_REFERENCE)
    if not end.granted:
        return _use_page(owner, Gfn(end.place), use)
    ref = end.place & 0xFFFF_FFFF
    gfn = _acquire(domain, owner, ref, write=write)
    try:
        return _use_page(owner, gfn, use)
    finally:
        owner.grants.release(GrantRef(ref), write=write)


def _use_page(owner: DomainState, gfn: Gfn, use: Callable[[memoryview], bytes]) -> bytes:
    try:
        return owner.memory.with_page(gfn, use)
    except XenError:
        raise _Refused(STATUS_BAD_PAGE) from None


@suboperation(OP, 11, "swap_grant_ref", names=("uop", "count"))
def swap_grant_ref(call: Call) -> HypercallOutcome:
    """Exchange pairs of the caller's own entries, unused ones."""
    table = call.domain.grants

    def swap_one(op: GnttabSwapGrantRef) -> None:
        if not table.has(op.ref_a) or not table.has(op.ref_b):
            raise _Refused(STATUS_BAD_REFERENCE)
        try:
            table.swap(GrantRef(op.ref_a), GrantRef(op.ref_b))
        except XenError:
            raise _Refused(STATUS_AGAIN) from None

    return _each(call, GnttabSwapGrantRef, swap_one)
