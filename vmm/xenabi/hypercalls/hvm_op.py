"""hvm_op: parameters of the domain, and the upcall vector.  xen/include/public/hvm/hvm_op.h, params.h"""

import errno

from vmm.xenabi.constants import DOMID_SELF, HVM_NR_PARAMS, HvmParam, Hypercall
from vmm.xenabi.hypercalls.registry import exists, is_back_ends, suboperation, target_of
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.structs import (
    HvmGetMemType,
    HvmGetTime,
    HvmPagetableDying,
    HvmParamOp,
    HvmUpcallVector,
    HvmXentrace,
)
from vmm.xenabi.values import Gfn, XenError

GUEST_MAY_READ = frozenset(HvmParam)
GUEST_MAY_SET = frozenset({
    HvmParam.CALLBACK_IRQ, HvmParam.VM86_TSS, HvmParam.VM86_TSS_SIZED, HvmParam.ACPI_IOPORTS_LOCATION,
    HvmParam.VM_GENERATION_ID_ADDR, HvmParam.STORE_EVTCHN, HvmParam.CONSOLE_EVTCHN, HvmParam.X87_FIP_WIDTH,
})  # fmt: skip

LEAST_TSS_BYTES, TSS_BYTES, MOST_TSS_BYTES = 104, 128, 104 + 0x100 // 8 + 0x1_0000 // 8 + 1
FIP_WIDTHS = (0, 4, 8)
MAX_EXTRA_BYTES, EVENT_MASK = 28, 0xFFF
MEM_RAM_RW, MEM_MMIO_DM = 0, 2
"""HVMMEM_*."""


DEPRECATED = frozenset({4, 13, *range(20, 27), 30})
"""Indices that params.h keeps the names of, and no more."""


def _target(call: Call, op: HvmParamOp, allowed: frozenset[HvmParam]) -> DomainState:
    if op.index >= HVM_NR_PARAMS or is_back_ends(call.domain, op.domid):
        raise XenError(errno.EINVAL)
    target = target_of(call, op.domid)
    if op.index in DEPRECATED:
        raise XenError(errno.EINVAL)
    if op.index not in allowed:
        raise XenError(errno.EPERM)
    return target


@suboperation(Hypercall.hvm_op, 0, "set_param", arg=HvmParamOp)
def set_param(call: Call, op: HvmParamOp) -> None:
    """Set one of the few parameters that are the guest's own."""
    target = _target(call, op, GUEST_MAY_SET)
    if op.index == HvmParam.ACPI_IOPORTS_LOCATION:  # of a timer that PVH has not
        raise XenError(errno.ENODEV)
    if (op.index == HvmParam.VM86_TSS and op.value >> 32) or (
        op.index == HvmParam.VM86_TSS_SIZED and op.value >> 32 < LEAST_TSS_BYTES
    ):
        if target is call.domain:
            target.crash("it has set a VM86 TSS that no CPU could use")
        raise XenError(errno.EINVAL)
    if op.index == HvmParam.X87_FIP_WIDTH and op.value not in FIP_WIDTHS:
        raise XenError(errno.EINVAL)
    index, value = op.index, op.value
    if index == HvmParam.VM86_TSS:  # an older name, with a size that is understood
        index, value = HvmParam.VM86_TSS_SIZED, value | TSS_BYTES << 32 if value else 0
    elif index == HvmParam.VM86_TSS_SIZED:
        value = value & 0xFFFF_FFFF | min(value >> 32, MOST_TSS_BYTES) << 32
    target.hvm_params[index] = value
    if op.index == HvmParam.CALLBACK_IRQ:
        target.set_callback(op.value)


@suboperation(Hypercall.hvm_op, 1, "get_param", arg=HvmParamOp, out=True)
def get_param(call: Call, op: HvmParamOp) -> None:
    """Read a parameter; one that was never set is 0."""
    params = _target(call, op, GUEST_MAY_READ).hvm_params
    if op.index == HvmParam.VM86_TSS:
        op.value = params.get(HvmParam.VM86_TSS_SIZED, 0) & 0xFFFF_FFFF
    else:
        op.value = params.get(op.index, 0)


@suboperation(Hypercall.hvm_op, 9, "pagetable_dying", arg=HvmPagetableDying)
def pagetable_dying(call: Call, op: HvmPagetableDying) -> None:
    """Of use to shadow paging alone, which no domain here has; Linux asks once whether it is."""
    own = call.domain
    if op.domid in (DOMID_SELF, own.domid):
        raise XenError(errno.EINVAL)
    raise XenError(errno.EOPNOTSUPP if exists(own, op.domid) else errno.ESRCH)


@suboperation(Hypercall.hvm_op, 23, "set_evtchn_upcall_vector", arg=HvmUpcallVector)
def set_evtchn_upcall_vector(call: Call, op: HvmUpcallVector) -> None:
    """The vector that interrupts one vCPU for its events, acknowledged at its LAPIC."""
    vcpus = call.domain.vcpus
    if op.vector < 16:
        raise XenError(errno.EINVAL)
    if op.vcpu >= len(vcpus):
        raise XenError(errno.ENOENT)
    vcpus[op.vcpu].set_upcall_vector(op.vector)


def _takes_nothing(call: Call) -> None:
    if call.args[1]:
        raise XenError(errno.EINVAL)


@suboperation(Hypercall.hvm_op, 5, "flush_tlbs")
def flush_tlbs(call: Call) -> None:
    """Nothing is kept of the guest's page tables beyond what the CPUs keep."""
    _takes_nothing(call)


@suboperation(Hypercall.hvm_op, 10, "get_time", names=("uop",))
def get_time(call: Call) -> None:
    """Xen's own time, nanoseconds: here, the guest's system time."""
    call.vcpu.write_virtual(call.args[1], HvmGetTime(now=call.domain.system_time_ns()).pack(call.abi))


@suboperation(Hypercall.hvm_op, 11, "xentrace", arg=HvmXentrace)
def xentrace(call: Call, op: HvmXentrace) -> None:
    """An event for Xen's trace buffers, of which there are none; `--trace` shows the call."""
    if op.extra_bytes > MAX_EXTRA_BYTES or op.event & ~EVENT_MASK:
        raise XenError(errno.EINVAL)


@suboperation(Hypercall.hvm_op, 15, "get_mem_type", arg=HvmGetMemType, out=True)
def get_mem_type(call: Call, op: HvmGetMemType) -> None:
    """Whether a gfn holds memory, or would reach a device model."""
    op.mem_type = MEM_RAM_RW if target_of(call, op.domid).memory.has_page(Gfn(op.pfn)) else MEM_MMIO_DM


@suboperation(Hypercall.hvm_op, 24, "guest_request_vm_event")
def guest_request_vm_event(call: Call) -> None:
    """A sign to who monitors the guest: nobody does."""
    _takes_nothing(call)


@suboperation(Hypercall.hvm_op, 25, "altp2m")
def altp2m(call: Call) -> None:
    """Alternative views of the guest's memory: there are none, as on a Xen whose CPU cannot switch them."""
    raise XenError(errno.EOPNOTSUPP)
