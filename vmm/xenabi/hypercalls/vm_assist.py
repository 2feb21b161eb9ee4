"""vm_assist: optional behaviour of the hypervisor.  xen/include/public/xen.h"""

import errno

from vmm.xenabi.constants import Hypercall, VmAssist
from vmm.xenabi.hypercalls.registry import hypercall
from vmm.xenabi.state import Call
from vmm.xenabi.values import XenError

ENABLE, DISABLE = 0, 1


@hypercall(Hypercall.vm_assist, "cmd", "type")
def vm_assist(call: Call) -> None:
    """(command, assist): only the flag in a run state that is being updated is for guests that are not PV."""
    command, assist = call.args[0], call.args[1]
    if assist != VmAssist.runstate_update_flag:
        raise XenError(errno.EINVAL)
    if command not in (ENABLE, DISABLE):
        raise XenError(errno.ENOSYS)
    call.domain.vm_assist(assist, enabled=command == ENABLE)
