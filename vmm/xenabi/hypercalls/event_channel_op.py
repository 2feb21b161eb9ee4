"""event_channel_op: the guest's side of its event channels.  xen/include/public/event_channel.h"""

import errno

from vmm.xenabi.constants import DOMID_SELF, PAGE_BYTES, EvtchnStatusKind, Hypercall
from vmm.xenabi.evtchn import PORTS_A_BUCKET
from vmm.xenabi.evtchn_abi import CONTROL_BLOCK_BYTES, LINK_BITS
from vmm.xenabi.hypercalls.registry import suboperation, target_of
from vmm.xenabi.state import Call
from vmm.xenabi.structs import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnInitControl,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EvtchnStatus,
    EvtchnUnmask,
)
from vmm.xenabi.values import Domid, Gpa, XenError

OP = Hypercall.event_channel_op


@suboperation(OP, 0, "bind_interdomain", arg=EvtchnBindInterdomain, out=True)
def bind_interdomain(call: Call, op: EvtchnBindInterdomain) -> None:
    """Bind to a port that another domain has left unbound for the caller, or the caller itself."""
    domain = call.domain
    remote = domain.domid if op.remote_dom == DOMID_SELF else Domid(op.remote_dom)
    op.local_port = domain.events.bind_interdomain(remote, op.remote_port)


@suboperation(OP, 1, "bind_virq", arg=EvtchnBindVirq, out=True)
def bind_virq(call: Call, op: EvtchnBindVirq) -> None:
    """A port for a virtual interrupt."""
    op.port = call.domain.events.bind_virq(op.virq, op.vcpu)


@suboperation(OP, 2, "bind_pirq", arg=EvtchnBindPirq, out=True)
def bind_pirq(call: Call, op: EvtchnBindPirq) -> None:
    """A port for a physical interrupt, which never comes."""
    op.port = call.domain.events.bind_pirq(op.pirq)


@suboperation(OP, 3, "close", arg=EvtchnClose)
def close(call: Call, op: EvtchnClose) -> None:
    """Free a port."""
    call.domain.events.close(op.port)


@suboperation(OP, 4, "send", arg=EvtchnSend)
def send(call: Call, op: EvtchnSend) -> None:
    """Raise the event at the port's remote end."""
    call.domain.events.send(op.port)


@suboperation(OP, 5, "status", arg=EvtchnStatus, out=True)
def status(call: Call, op: EvtchnStatus) -> None:
    """What a port is bound to."""
    try:
        target = target_of(call, op.dom)
    except XenError as error:
        if error.code == errno.EPERM:  # that comes after the port's own check
            other = call.domain.hypervisor.find(op.dom)
            if op.port >= PORTS_A_BUCKET if other is None else not other.events.has(op.port):
                raise XenError(errno.EINVAL) from None
        raise
    channel = target.events.status(op.port)
    op.status, op.vcpu, op.u_dom, op.u_port = EvtchnStatusKind.closed, 0, 0, 0
    if channel is None:
        return
    op.status, op.vcpu = channel.kind, channel.vcpu
    if channel.kind in (EvtchnStatusKind.unbound, EvtchnStatusKind.interdomain):
        op.u_dom, op.u_port = channel.remote_domid, channel.remote_port
    elif channel.kind in (EvtchnStatusKind.virq, EvtchnStatusKind.pirq):
        op.u_dom = channel.virq  # the union's u.virq or u.pirq, whose upper half is 0


@suboperation(OP, 6, "alloc_unbound", arg=EvtchnAllocUnbound, out=True)
def alloc_unbound(call: Call, op: EvtchnAllocUnbound) -> None:
    """A port that another domain may bind to."""
    remote = call.domain.domid if op.remote_dom == DOMID_SELF else Domid(op.remote_dom)
    op.port = target_of(call, op.dom).events.alloc_unbound(remote)


@suboperation(OP, 7, "bind_ipi", arg=EvtchnBindIpi, out=True)
def bind_ipi(call: Call, op: EvtchnBindIpi) -> None:
    """A port that interrupts a vCPU of the caller."""
    op.port = call.domain.events.bind_ipi(op.vcpu)


@suboperation(OP, 8, "bind_vcpu", arg=EvtchnBindVcpu)
def bind_vcpu(call: Call, op: EvtchnBindVcpu) -> None:
    """Send a port's events to another vCPU."""
    call.domain.events.bind_vcpu(op.port, op.vcpu)


@suboperation(OP, 9, "unmask", arg=EvtchnUnmask)
def unmask(call: Call, op: EvtchnUnmask) -> None:
    """Clear a port's mask; what came meanwhile is delivered."""
    call.domain.events.unmask(op.port)


@suboperation(OP, 14, "reset_cont", arg=EvtchnReset)
@suboperation(OP, 10, "reset", arg=EvtchnReset)
def reset(call: Call, op: EvtchnReset) -> None:
    """Close every port of a domain."""
    target_of(call, op.dom).events.reset()


@suboperation(OP, 11, "init_control", arg=EvtchnInitControl, out=True)
def init_control(call: Call, op: EvtchnInitControl) -> None:
    """A vCPU's FIFO control block: within one page, aligned to 8."""
    domain = call.domain
    domain.events.check_vcpu(op.vcpu)
    if op.offset > PAGE_BYTES - CONTROL_BLOCK_BYTES or op.offset % 8:
        raise XenError(errno.EINVAL)
    block = domain.memory.shared(Gpa(op.control_gfn * PAGE_BYTES + op.offset), CONTROL_BLOCK_BYTES)
    domain.events.init_control(op.vcpu, block)
    op.link_bits = LINK_BITS


@suboperation(OP, 12, "expand_array", arg=EvtchnExpandArray)
def expand_array(call: Call, op: EvtchnExpandArray) -> None:
    """Another page of FIFO event words."""
    domain = call.domain
    if not domain.events.uses_fifo:
        raise XenError(errno.EOPNOTSUPP)
    domain.events.expand_array(domain.memory.shared(Gpa(op.array_gfn * PAGE_BYTES), PAGE_BYTES))


@suboperation(OP, 13, "set_priority", arg=EvtchnSetPriority)
def set_priority(call: Call, op: EvtchnSetPriority) -> None:
    """A port's FIFO priority."""
    call.domain.events.set_priority(op.port, op.priority)
