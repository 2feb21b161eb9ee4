"""grant_table_op: setting the grant table up, and using what others have granted.  xen/include/public/grant_table.h"""

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vmm.xenabi.constants import DOMID_SELF, GRANT_STATUS_FRAMES, PAGE_BYTES, Hypercall
from vmm.xenabi.grant_maps import Mapping
from vmm.xenabi.hypercalls.registry import suboperation
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.structs import (
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
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
STATUS_BAD_COPY = -10
STATUS_NO_SPACE = -13

MAP_HOST, MAP_READ_ONLY, MAP_CONTAINS_PTE = 1 << 1, 1 << 2, 1 << 4
CACHE_CLEAN, CACHE_INVALIDATE, CACHE_SOURCE_IS_GREF = 1, 2, 1 << 31
_CACHE_OPERATIONS = CACHE_CLEAN | CACHE_INVALIDATE | CACHE_SOURCE_IS_GREF
COPY_SOURCE_IS_GRANT, COPY_DEST_IS_GRANT = 1, 2
AT_A_TIME = 128


@suboperation(OP, 6, "query_size", arg=GnttabQuerySize, out=True)
def query_size(call: Call, op: GnttabQuerySize) -> None:
    """How long the table is, and how long it may get."""
    domain = call.domain
    if op.dom not in (DOMID_SELF, domain.domid):
        op.status = STATUS_BAD_DOMAIN
        return
    op.nr_frames, op.max_nr_frames = domain.grants.frames, domain.grants.max_frames
    op.status = STATUS_OKAY


@suboperation(OP, 2, "setup_table", arg=GnttabSetupTable, out=True)
def setup_table(call: Call, op: GnttabSetupTable) -> None:
    """Make the table so long, and say at which gfns its frames have been placed (all ones: nowhere yet)."""
    grants = call.domain.grants

    def pages(count: int) -> list[int]:
        grants.grow(count)
        return [grants.page(index) for index in range(count)]

    _tell_frames(call, op, grants.max_frames, int(call.abi), pages)


@suboperation(OP, 9, "get_status_frames", arg=GnttabGetStatusFrames, out=True)
def get_status_frames(call: Call, op: GnttabGetStatusFrames) -> None:
    """At which gfns the status frames of version 2 have been placed."""
    grants = call.domain.grants

    def pages(count: int) -> list[int]:
        return [grants.page(index | GRANT_STATUS_FRAMES) for index in range(count)]

    _tell_frames(call, op, grants.status_frames, 8, pages)


def _tell_frames(
    call: Call,
    op: GnttabSetupTable | GnttabGetStatusFrames,
    most: int,
    word_bytes: int,
    pages: Callable[[int], list[int]],
) -> None:
    domain = call.domain
    if op.dom not in (DOMID_SELF, domain.domid):
        op.status = STATUS_BAD_DOMAIN
    elif op.nr_frames > most:
        op.status = STATUS_GENERAL_ERROR
    else:
        nowhere = (1 << 8 * word_bytes) - 1
        placed = [domain.memory.placed_at(page) for page in pages(op.nr_frames)]
        data = b"".join((nowhere if gfn is None else gfn).to_bytes(word_bytes, "little") for gfn in placed)
        call.vcpu.write_virtual(op.frame_list, data)
        op.status = STATUS_OKAY


@suboperation(OP, 8, "set_version", arg=GnttabSetVersion, out=True)
def set_version(call: Call, op: GnttabSetVersion) -> None:
    """Choose the layout of the entries."""
    if op.version not in (1, 2):
        raise XenError(errno.EINVAL)
    call.domain.grants.set_version(op.version)


@suboperation(OP, 10, "get_version", arg=GnttabGetVersion, out=True)
def get_version(call: Call, op: GnttabGetVersion) -> None:
    """The layout in use."""
    if op.dom not in (DOMID_SELF, call.domain.domid):
        raise XenError(errno.EPERM)
    op.version = call.domain.grants.version


@suboperation(OP, 12, "cache_flush", names=("uop", "count"))
def cache_flush(call: Call) -> HypercallOutcome:
    """Flush the CPU's caches for parts of pages; only for a page of another domain's that has been mapped here.

    There is nothing to flush where devices see what the CPUs do, so this answers and does no more.
    """
    count, size = call.args[2] & 0xFFFF_FFFF, GnttabCacheFlush.sizeof(call.abi)
    for done in range(count):
        if done == AT_A_TIME:
            return Restart((call.args[0], call.args[1] + done * size, count - done))
        address = call.args[1] + done * size
        op = GnttabCacheFlush.unpack(call.vcpu.read_virtual(address, size), call.abi)
        _flush(call.domain, op)
    return 0


def _flush(domain: DomainState, op: GnttabCacheFlush) -> None:
    if op.offset >= PAGE_BYTES or op.length > PAGE_BYTES or op.offset + op.length > PAGE_BYTES:
        raise XenError(errno.EINVAL)
    if op.op & ~_CACHE_OPERATIONS:
        raise XenError(errno.EINVAL)
    if not op.length or not op.op:
        return
    if op.op & CACHE_SOURCE_IS_GREF:
        raise XenError(errno.EOPNOTSUPP)
    if op.dev_bus_addr // PAGE_BYTES > domain.hypervisor.highest_page:
        raise XenError(errno.EINVAL)
    raise XenError(errno.EPERM)  # a page of the host's, which no guest knows by its address


# -------------------------------------------------------------------------- using what others have granted


Operand = TypeVar("Operand", GnttabMapGrantRef, GnttabUnmapGrantRef, GnttabCopy)


class _Refused(Exception):
    """A GNTST_* other than okay."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _each(call: Call, kind: type[Operand], action: Callable[[Operand], None]) -> HypercallOutcome:
    """Carry out a list of operations (address, count), each with a status of its own; a long list gives way."""
    command, address, count = call.args[0], call.args[1], call.args[2] & 0xFFFF_FFFF
    size = kind.sizeof(call.abi)
    for done in range(count):
        if done == AT_A_TIME or (done and call.vcpu.stop_requested()):
            return Restart((command, address + done * size, count - done))
        place = address + done * size
        operation = kind.unpack(call.vcpu.read_virtual(place, size), call.abi)
        try:
            action(operation)
            status = STATUS_OKAY
        except _Refused as refused:
            status = refused.status
        operation.status = status
        call.vcpu.write_virtual(place, operation.pack(call.abi))
    return 0


def _granter(domain: DomainState, domid: int) -> DomainState:
    found = domain if domid == DOMID_SELF else domain.hypervisor.find(domid)
    if found is None:
        raise _Refused(STATUS_BAD_DOMAIN)
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
        if not op.flags & MAP_HOST or op.flags & MAP_CONTAINS_PTE:
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
        source = _End(op.source_domid, op.source, op.source_offset, bool(op.flags & COPY_SOURCE_IS_GRANT))
        dest = _End(op.dest_domid, op.dest, op.dest_offset, bool(op.flags & COPY_DEST_IS_GRANT))
        if max(source.offset, dest.offset) + op.len > PAGE_BYTES:
            raise _Refused(STATUS_BAD_COPY)
        data = _with_page(domain, source, False, lambda page: bytes(page[source.offset : source.offset + op.len]))

        def put(page: memoryview) -> bytes:
            page[dest.offset : dest.offset + op.len] = data
            return data

        _with_page(domain, dest, True, put)

    return _each(call, GnttabCopy, copy_one)


def _with_page(domain: DomainState, end: _End, write: bool, use: Callable[[memoryview], bytes]) -> bytes:
    owner = _granter(domain, end.domid)
    if not end.granted:
        if owner is not domain:
            raise _Refused(STATUS_PERMISSION_DENIED)
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
        raise _Refused(STATUS_BAD_ADDRESS) from None
