"""set_timer_op: one VIRQ_TIMER at an absolute system time.  xen/include/public/xen.h"""

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.hypercalls.registry import hypercall
from vmm.xenabi.state import Call


@hypercall(Hypercall.set_timer_op, "timeout")
def set_timer_op(call: Call) -> None:
    """The deadline is one argument, two for a 32-bit caller (low word first); 0 cancels."""
    if call.abi is Abi.X86_64:
        deadline = call.args[0]
    else:
        deadline = call.args[0] | call.args[1] << 32
    call.vcpu.clock.set_timer(deadline or None)
