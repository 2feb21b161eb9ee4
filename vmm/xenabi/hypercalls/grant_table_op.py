"""grant_table_op: setting the grant table up.  xen/include/public/grant_table.h"""

import errno
from collections.abc import Callable

from vmm.xenabi.constants import DOMID_SELF, GRANT_STATUS_FRAMES, Hypercall
from vmm.xenabi.hypercalls.registry import domain_of, suboperation
from vmm.xenabi.interfaces import Call, XenError
from vmm.xenabi.structs import GnttabGetStatusFrames, GnttabGetVersion, GnttabQuerySize, GnttabSetupTable, GnttabSetVersion

OP = Hypercall.grant_table_op
STATUS_OKAY = 0
STATUS_GENERAL_ERROR = -1
STATUS_BAD_DOMAIN = -2


@suboperation(OP, 6, "query_size", arg=GnttabQuerySize, out=True)
def query_size(call: Call, op: GnttabQuerySize) -> None:
    """How long the table is, and how long it may get."""
    domain = domain_of(call)
    if op.dom not in (DOMID_SELF, domain.domid):
        op.status = STATUS_BAD_DOMAIN
        return
    op.nr_frames, op.max_nr_frames = domain.grants.frames, domain.grants.max_frames
    op.status = STATUS_OKAY


@suboperation(OP, 2, "setup_table", arg=GnttabSetupTable, out=True)
def setup_table(call: Call, op: GnttabSetupTable) -> None:
    """Make the table so long, and say at which gfns its frames have been placed (all ones: nowhere yet)."""
    grants = domain_of(call).grants

    def pages(count: int) -> list[int]:
        grants.grow(count)
        return [grants.page(index) for index in range(count)]

    _tell_frames(call, op, grants.max_frames, int(call.abi), pages)


@suboperation(OP, 9, "get_status_frames", arg=GnttabGetStatusFrames, out=True)
def get_status_frames(call: Call, op: GnttabGetStatusFrames) -> None:
    """At which gfns the status frames of version 2 have been placed."""
    grants = domain_of(call).grants

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
    domain = domain_of(call)
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
    domain_of(call).grants.set_version(op.version)


@suboperation(OP, 10, "get_version", arg=GnttabGetVersion, out=True)
def get_version(call: Call, op: GnttabGetVersion) -> None:
    """The layout in use."""
    if op.dom not in (DOMID_SELF, domain_of(call).domid):
        raise XenError(errno.EPERM)
    op.version = domain_of(call).grants.version
