"""grant_table_op: setting the grant table up.  xen/include/public/grant_table.h"""

import errno

from vmm.xenabi.constants import DOMID_SELF, Hypercall
from vmm.xenabi.hypercalls.registry import domain_of, suboperation
from vmm.xenabi.interfaces import Call, XenError
from vmm.xenabi.structs import GnttabGetVersion, GnttabQuerySize, GnttabSetVersion

OP = Hypercall.grant_table_op
STATUS_OKAY = 0
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
