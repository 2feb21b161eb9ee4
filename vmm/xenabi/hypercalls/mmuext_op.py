"""mmuext_op: page tables of PV domains, refused to a PVH one in Xen's words.  xen/include/public/xen.h"""

import errno

from vmm.xenabi.constants import DOMID_SELF, Hypercall
from vmm.xenabi.hypercalls.registry import exists, hypercall
from vmm.xenabi.state import Call
from vmm.xenabi.values import XenError


@hypercall(Hypercall.mmuext_op, "uops", "count", "pdone", "foreigndom")
def mmuext_op(call: Call) -> None:
    """(operations, count, done, domain): there are no page tables here that Xen would look after."""
    domain, foreign = call.domain, call.args[3] & 0xFFFF
    if foreign == DOMID_SELF:
        raise XenError(errno.EINVAL)
    raise XenError(errno.EPERM if exists(domain, foreign) and foreign != domain.domid else errno.ESRCH)
