"""sched_op: yielding, blocking, and ending the domain.  xen/include/public/sched.h"""

import errno
import struct

from vmm.xenabi.constants import DOMID_SELF, Hypercall, ShutdownReason
from vmm.xenabi.hypercalls.registry import suboperation, target_of
from vmm.xenabi.state import Call
from vmm.xenabi.structs import SchedPinOverride, SchedPoll, SchedRemoteShutdown, SchedShutdown, SchedWatchdog
from vmm.xenabi.values import Wait, XenError

MAX_POLLED_PORTS = 128
UPCALL_MASK_OFFSET = 1  # vcpu_info.evtchn_upcall_mask


@suboperation(Hypercall.sched_op, 0, "yield")
def yield_(call: Call) -> None:
    """Give the CPU away; the host's scheduler has had its chance by the time this is answered."""


@suboperation(Hypercall.sched_op, 1, "block")
def block(call: Call) -> Wait:
    """Let events in, and sleep until there is one."""
    if call.vcpu.info is not None:
        call.vcpu.info.write(UPCALL_MASK_OFFSET, b"\0")
    return call.domain.events.block(call.vcpu)


@suboperation(Hypercall.sched_op, 3, "poll", arg=SchedPoll)
def poll(call: Call, op: SchedPoll) -> Wait:
    """Sleep until one of some ports is pending, or a system time has come (0: never)."""
    if op.nr_ports > MAX_POLLED_PORTS:
        raise XenError(errno.EINVAL)
    domain = call.domain
    ports = struct.unpack(f"<{op.nr_ports}I", call.vcpu.read_virtual(op.ports, 4 * op.nr_ports)) if op.nr_ports else ()
    return domain.events.poll(call.vcpu, ports, op.timeout or None)


@suboperation(Hypercall.sched_op, 2, "shutdown", arg=SchedShutdown)
def shutdown(call: Call, op: SchedShutdown) -> None:
    """End the domain with a reason."""
    call.domain.shutdown(_reason(op.reason))


@suboperation(Hypercall.sched_op, 5, "shutdown_code", arg=SchedShutdown)
def shutdown_code(call: Call, op: SchedShutdown) -> None:
    """Say beforehand how the coming shutdown is to be understood."""
    call.domain.shutdown_reason = _reason(op.reason)


@suboperation(Hypercall.sched_op, 4, "remote_shutdown", arg=SchedRemoteShutdown)
def remote_shutdown(call: Call, op: SchedRemoteShutdown) -> None:
    """A device model says that its domain has ended: for the privileged domain, of another."""
    if op.domain_id == DOMID_SELF:
        raise XenError(errno.ESRCH)
    target = target_of(call, op.domain_id)
    if target is call.domain:
        raise XenError(errno.EPERM)
    target.shutdown(_reason(op.reason))


@suboperation(Hypercall.sched_op, 6, "watchdog", arg=SchedWatchdog)
def watchdog(call: Call, op: SchedWatchdog) -> int:
    """Start, set or stop a timer that ends the domain: its number, where it is a new one."""
    return call.domain.watchdog(op.id, op.timeout)


def _may_pin(call: Call) -> None:
    if not call.domain.privileged:
        raise XenError(errno.EPERM)


@suboperation(Hypercall.sched_op, 7, "pin_override", arg=SchedPinOverride, check=_may_pin)
def pin_override(call: Call, op: SchedPinOverride) -> None:
    """Run a dom0's vCPU on one physical CPU for a while; the host's CPUs are not dom0's."""
    raise XenError(errno.ENOSYS)


def _reason(code: int) -> ShutdownReason:
    if code not in ShutdownReason._value2member_map_:
        raise XenError(errno.EINVAL)
    return ShutdownReason(code)
