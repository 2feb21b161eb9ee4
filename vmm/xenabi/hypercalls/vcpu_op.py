"""vcpu_op: what belongs to one vCPU.  xen/include/public/vcpu.h"""

import errno

from vmm.xenabi.constants import LEGACY_VCPUS, PAGE_BYTES, Hypercall, ShutdownReason, VcpuHvmMode
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import mark_all_pending
from vmm.xenabi.hypercalls.registry import checked_first, suboperation
from vmm.xenabi.interfaces import VcpuState
from vmm.xenabi.state import Call
from vmm.xenabi.structs import (
    RegisterArea,
    RegisterTimeArea,
    RegisterVcpuInfo,
    RunstateInfo,
    SetPeriodicTimer,
    SetSingleshotTimer,
    VcpuHvmContext,
    VcpuHvmX86,
    VcpuHvmX86_64,
)
from vmm.xenabi.values import Gpa, XenError
from vmm.xenabi.vcpu_context import from_32, from_64

VCPU_INFO_BYTES = 64
MIN_PERIOD_NS = 1_000_000
MAX_PERIOD_NS = 1 << 63

OP = Hypercall.vcpu_op


def _target(call: Call) -> VcpuState:
    vcpus = call.domain.vcpus
    if call.args[1] >= len(vcpus):
        raise XenError(errno.ENOENT)
    return vcpus[call.args[1]]


def _own(call: Call) -> VcpuState:
    """Xen lets a vCPU register areas and set timers for itself only."""
    target = _target(call)
    if target is not call.vcpu:
        raise XenError(errno.EINVAL)
    return target


@suboperation(OP, 0, "initialise", arg=VcpuHvmContext, at=2, names=("vcpuid",))
def initialise(call: Call, op: VcpuHvmContext) -> None:
    """Give a vCPU that never ran its first state; VCPUOP_up starts it."""
    vcpu = _target(call)
    if vcpu.initialised:
        raise XenError(errno.EEXIST)
    if op.pad or (vcpu.id >= LEGACY_VCPUS and vcpu.info is None):
        raise XenError(errno.EINVAL)
    if op.mode == VcpuHvmMode.B32:
        context = from_32(VcpuHvmX86.unpack(op.cpu_regs[: VcpuHvmX86.sizeof(call.abi)], call.abi))
    elif op.mode == VcpuHvmMode.B64:
        context = from_64(VcpuHvmX86_64.unpack(op.cpu_regs[: VcpuHvmX86_64.sizeof(call.abi)], call.abi))
    else:
        raise XenError(errno.EINVAL)
    vcpu.initialise(context)


@suboperation(OP, 1, "up", names=("vcpuid",))
def up(call: Call) -> None:
    """Let it run, from its first state or from where VCPUOP_down stopped it."""
    _target(call).up()


@suboperation(OP, 2, "down", names=("vcpuid",))
def down(call: Call) -> None:
    """Stop it; a domain whose last vCPU stops has powered off."""
    vcpu = _target(call)
    if not any(other.online for other in call.domain.vcpus if other is not vcpu):
        call.domain.shutdown(ShutdownReason.poweroff)
    else:
        vcpu.down()


@suboperation(OP, 3, "is_up", names=("vcpuid",))
def is_up(call: Call) -> int:
    """1 where the vCPU has been started."""
    return int(_target(call).online)


@suboperation(OP, 4, "get_runstate_info", arg=RunstateInfo, at=2, out=True, names=("vcpuid",))
def get_runstate_info(call: Call, op: RunstateInfo) -> None:
    """How the vCPU has spent its time."""
    for name, value in _target(call).clock.runstate()._asdict().items():
        setattr(op, name, value)


@suboperation(OP, 5, "register_runstate_memory_area", arg=RegisterArea, at=2, names=("vcpuid",))
def register_runstate_memory_area(call: Call, op: RegisterArea) -> None:
    """Keep a copy of the run state at a guest-virtual address."""
    _target(call).clock.keep_runstate(_handle(call, op.addr), call.abi, call.vcpu)


@suboperation(OP, 6, "set_periodic_timer", arg=SetPeriodicTimer, at=2, names=("vcpuid",))
def set_periodic_timer(call: Call, op: SetPeriodicTimer) -> None:
    """VIRQ_TIMER every so many nanoseconds, at the least 1 ms."""
    if not MIN_PERIOD_NS <= op.period_ns < MAX_PERIOD_NS:
        raise XenError(errno.EINVAL)
    _own(call).clock.set_periodic_timer(op.period_ns)


@suboperation(OP, 7, "stop_periodic_timer", names=("vcpuid",))
def stop_periodic_timer(call: Call) -> None:
    """No more of them."""
    _own(call).clock.set_periodic_timer(None)


@suboperation(OP, 8, "set_singleshot_timer", arg=SetSingleshotTimer, at=2, names=("vcpuid",))
def set_singleshot_timer(call: Call, op: SetSingleshotTimer) -> None:
    """One VIRQ_TIMER at an absolute system time, at once where that is past; Xen 4.17 heeds none of the flags."""
    _own(call).clock.set_timer(op.timeout_abs_ns)


@suboperation(OP, 9, "stop_singleshot_timer", names=("vcpuid",))
def stop_singleshot_timer(call: Call) -> None:
    """Disarm it."""
    _own(call).clock.set_timer(None)


@suboperation(OP, 10, "register_vcpu_info", arg=RegisterVcpuInfo, at=2, names=("vcpuid",))
def register_vcpu_info(call: Call, op: RegisterVcpuInfo) -> None:
    """Move a vCPU's vcpu_info to a place of the guest's choosing; once only, within one page."""
    vcpu = _target(call)
    if op.offset > PAGE_BYTES - VCPU_INFO_BYTES or op.offset % int(call.abi):
        raise XenError(call.domain.behaviour.bad_vcpu_info)
    gpa = Gpa(op.mfn * PAGE_BYTES + op.offset)
    vcpu.set_info(gpa)
    mark_all_pending(vcpu, call.abi)


@suboperation(OP, 12, "get_physid", names=("vcpuid",))
def get_physid(call: Call) -> None:
    """Only a hardware domain whose vCPUs are pinned is told where it runs."""
    raise XenError(errno.EINVAL)


@suboperation(OP, 13, "register_vcpu_time_memory_area", arg=RegisterTimeArea, at=2, names=("vcpuid",))
def register_vcpu_time_memory_area(call: Call, op: RegisterTimeArea) -> None:
    """Keep a second copy of the vCPU's time at a guest-virtual address: for a clock that user code reads."""
    _target(call).clock.keep_time(_handle(call, op.addr), call.vcpu)


def _handle(call: Call, addr: int) -> int:
    """A place in a union of a handle and 64 bits: of a 32-bit caller Xen reads the handle alone, and Linux sets no more."""
    return addr & 0xFFFFFFFF if call.abi is Abi.X86_32 else addr


@checked_first(OP)
def is_there(call: Call) -> None:
    """The vCPU has to be there, whatever is to be done with it."""
    _target(call)
