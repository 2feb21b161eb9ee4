"""hvm_op: parameters of the domain, and the upcall vector.  xen/include/public/hvm/hvm_op.h, params.h"""

import errno

from vmm.xenabi.constants import HVM_NR_PARAMS, HvmParam, Hypercall
from vmm.xenabi.hypercalls.registry import suboperation, target_of
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.structs import HvmPagetableDying, HvmParamOp, HvmUpcallVector
from vmm.xenabi.values import XenError

GUEST_MAY_READ = frozenset(HvmParam)
GUEST_MAY_SET = frozenset({
    HvmParam.CALLBACK_IRQ, HvmParam.VM86_TSS, HvmParam.VM86_TSS_SIZED, HvmParam.ACPI_IOPORTS_LOCATION,
    HvmParam.VM_GENERATION_ID_ADDR, HvmParam.STORE_EVTCHN, HvmParam.CONSOLE_EVTCHN, HvmParam.X87_FIP_WIDTH,
})  # fmt: skip


def _target(call: Call, op: HvmParamOp, allowed: frozenset[HvmParam]) -> DomainState:
    target = target_of(call, op.domid)
    if op.index >= HVM_NR_PARAMS:
        raise XenError(errno.EINVAL)
    if op.index not in allowed:
        raise XenError(errno.EPERM)
    return target


@suboperation(Hypercall.hvm_op, 0, "set_param", arg=HvmParamOp)
def set_param(call: Call, op: HvmParamOp) -> None:
    """Set one of the few parameters that are the guest's own."""
    target = _target(call, op, GUEST_MAY_SET)
    target.hvm_params[op.index] = op.value
    if op.index == HvmParam.CALLBACK_IRQ:
        target.set_callback(op.value)


@suboperation(Hypercall.hvm_op, 1, "get_param", arg=HvmParamOp, out=True)
def get_param(call: Call, op: HvmParamOp) -> None:
    """Read a parameter; one that was never set is 0."""
    op.value = _target(call, op, GUEST_MAY_READ).hvm_params.get(op.index, 0)


@suboperation(Hypercall.hvm_op, 9, "pagetable_dying", arg=HvmPagetableDying)
def pagetable_dying(call: Call, op: HvmPagetableDying) -> None:
    """Of use to shadow paging alone, which no domain here has; Linux asks once whether it is."""
    raise XenError(errno.EINVAL)


@suboperation(Hypercall.hvm_op, 23, "set_evtchn_upcall_vector", arg=HvmUpcallVector)
def set_evtchn_upcall_vector(call: Call, op: HvmUpcallVector) -> None:
    """The vector that interrupts one vCPU for its events, acknowledged at its LAPIC."""
    vcpus = call.domain.vcpus
    if op.vector < 16:
        raise XenError(errno.EINVAL)
    if op.vcpu >= len(vcpus):
        raise XenError(errno.ENOENT)
    vcpus[op.vcpu].set_upcall_vector(op.vector)
