"""xenpmu_op: performance counters, which no domain here has.  xen/include/public/pmu.h"""

import errno

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls.registry import hypercall
from vmm.xenabi.state import Call
from vmm.xenabi.values import XenError


@hypercall(Hypercall.xenpmu_op, "op", "arg")
def xenpmu_op(call: Call) -> None:
    """Refused, as on a Xen without `vpmu`."""
    raise XenError(errno.EOPNOTSUPP)
