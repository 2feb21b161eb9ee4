"""event_channel_op: the guest's side of its event channels.  xen/include/public/event_channel.h"""

import errno

from vmm.xenabi.constants import DOMID_SELF, EvtchnStatusKind, Hypercall
from vmm.xenabi.hypercalls.registry import domain_of, suboperation
from vmm.xenabi.interfaces import Call, Domid, XenError
from vmm.xenabi.structs import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnReset,
    EvtchnSend,
    EvtchnStatus,
    EvtchnUnmask,
)

OP = Hypercall.event_channel_op


def _own(call: Call, domid: int) -> Domid:
    """The caller's domid behind DOMID_SELF; nobody else's ports may be touched."""
    own = domain_of(call).domid
    if domid not in (DOMID_SELF, own):
        raise XenError(errno.ESRCH if domain_of(call).privileged else errno.EPERM)
    return own


@suboperation(OP, 0, "bind_interdomain", arg=EvtchnBindInterdomain, out=True)
def bind_interdomain(call: Call, op: EvtchnBindInterdomain) -> None:
    """Bind to an unbound port of one's own domain: a loopback."""
    domain = domain_of(call)
    if op.remote_dom not in (DOMID_SELF, domain.domid):
        raise XenError(errno.ESRCH)
    op.local_port = domain.events.bind_loopback(domain.domid, op.remote_port)


@suboperation(OP, 1, "bind_virq", arg=EvtchnBindVirq, out=True)
def bind_virq(call: Call, op: EvtchnBindVirq) -> None:
    """A port for a virtual interrupt."""
    op.port = domain_of(call).events.bind_virq(op.virq, op.vcpu)


@suboperation(OP, 3, "close", arg=EvtchnClose)
def close(call: Call, op: EvtchnClose) -> None:
    """Free a port."""
    domain_of(call).events.close(op.port)


@suboperation(OP, 4, "send", arg=EvtchnSend)
def send(call: Call, op: EvtchnSend) -> None:
    """Raise the event at the port's remote end."""
    domain_of(call).events.send(op.port)


@suboperation(OP, 5, "status", arg=EvtchnStatus, out=True)
def status(call: Call, op: EvtchnStatus) -> None:
    """What a port is bound to."""
    _own(call, op.dom)
    channel = domain_of(call).events.status(op.port)
    op.status, op.vcpu, op.u_dom, op.u_port = EvtchnStatusKind.closed, 0, 0, 0
    if channel is None:
        return
    op.status, op.vcpu = channel.kind, channel.vcpu
    if channel.kind in (EvtchnStatusKind.unbound, EvtchnStatusKind.interdomain):
        op.u_dom, op.u_port = channel.remote_domid, channel.remote_port
    elif channel.kind is EvtchnStatusKind.virq:
        op.u_dom = channel.virq  # the union's u.virq, whose upper half is 0


@suboperation(OP, 6, "alloc_unbound", arg=EvtchnAllocUnbound, out=True)
def alloc_unbound(call: Call, op: EvtchnAllocUnbound) -> None:
    """A port that another domain may bind to."""
    own = _own(call, op.dom)
    op.port = domain_of(call).events.alloc_unbound(own if op.remote_dom == DOMID_SELF else Domid(op.remote_dom))


@suboperation(OP, 7, "bind_ipi", arg=EvtchnBindIpi, out=True)
def bind_ipi(call: Call, op: EvtchnBindIpi) -> None:
    """A port that interrupts a vCPU of the caller."""
    op.port = domain_of(call).events.bind_ipi(op.vcpu)


@suboperation(OP, 8, "bind_vcpu", arg=EvtchnBindVcpu)
def bind_vcpu(call: Call, op: EvtchnBindVcpu) -> None:
    """Send a port's events to another vCPU."""
    domain_of(call).events.bind_vcpu(op.port, op.vcpu)


@suboperation(OP, 9, "unmask", arg=EvtchnUnmask)
def unmask(call: Call, op: EvtchnUnmask) -> None:
    """Clear a port's mask; what came meanwhile is delivered."""
    domain_of(call).events.unmask(op.port)


@suboperation(OP, 10, "reset", arg=EvtchnReset)
def reset(call: Call, op: EvtchnReset) -> None:
    """Close every port of the caller."""
    _own(call, op.dom)
    domain_of(call).events.reset()
