"""sched_op: yielding, blocking, and ending the domain.  xen/include/public/sched.h"""

import errno

from vmm.xenabi.constants import Hypercall, ShutdownReason
from vmm.xenabi.hypercalls.registry import domain_of, suboperation
from vmm.xenabi.interfaces import Call, XenError
from vmm.xenabi.structs import SchedShutdown


@suboperation(Hypercall.sched_op, 0, "yield")
def yield_(call: Call) -> None:
    """Give the CPU away; the host's scheduler has had its chance by the time this is answered."""


@suboperation(Hypercall.sched_op, 2, "shutdown", arg=SchedShutdown)
def shutdown(call: Call, op: SchedShutdown) -> None:
    """End the domain with a reason."""
    domain_of(call).shutdown(_reason(op.reason))


@suboperation(Hypercall.sched_op, 5, "shutdown_code", arg=SchedShutdown)
def shutdown_code(call: Call, op: SchedShutdown) -> None:
    """Say beforehand how the coming shutdown is to be understood."""
    domain_of(call).shutdown_reason = _reason(op.reason)


def _reason(code: int) -> ShutdownReason:
    if code not in ShutdownReason._value2member_map_:
        raise XenError(errno.EINVAL)
    return ShutdownReason(code)
