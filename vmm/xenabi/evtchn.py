"""Event channels of one domain, over the 2-level ABI.

Everything that changes a port's state lives here.  One lock a domain guards it; the two ends of an interdomain channel
are locked one after the other, never together.  Source: xen/include/public/event_channel.h.
"""

import errno
import threading
from collections.abc import Sequence

from vmm.xenabi.constants import NR_VIRQS, PER_VCPU_VIRQS, EvtchnStatusKind
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.interfaces import Domid, Notify, Port, SharedBytes, Vcpu, VcpuId, XenError


class TwoLevelLayout:
    """Where the 2-level ABI keeps its bits in the shared info page (xen.h, struct shared_info)."""

    def __init__(self, abi: Abi) -> None:
        word = int(abi)
        self.word_bits = 8 * word
        self.ports = self.word_bits * self.word_bits
        self.pending_offset = 32 * 64
        self.mask_offset = self.pending_offset + word * self.word_bits
        self.wall_clock_offset = self.mask_offset + word * self.word_bits
        self.selector_offset = word  # vcpu_info.evtchn_pending_sel


class Channel:
    """One port: what it is bound to, and the vCPU that its events go to."""

    __slots__ = ("kind", "notify_remote", "port", "remote_domid", "remote_port", "vcpu", "virq")

    def __init__(self, port: Port, kind: EvtchnStatusKind) -> None:
        self.port = port
        self.kind = kind
        self.vcpu = VcpuId(0)
        self.virq = 0
        self.remote_domid = Domid(0)
        self.remote_port = Port(0)
        self.notify_remote: Notify | None = None


class EventChannels:
    """The ports of one domain.  Its lock guards the table; the pending and mask bits are the guest's as well."""

    def __init__(self, vcpus: Sequence[Vcpu], limit: int = 4096) -> None:
        self._vcpus = vcpus
        self._limit = limit
        self._lock = threading.RLock()
        self._channels: dict[Port, Channel] = {}
        self._virqs: dict[tuple[VcpuId, int], Channel] = {}
        self._next = 1
        self._shared: SharedBytes | None = None
        self._layout = TwoLevelLayout(Abi.X86_64)

    # ------------------------------------------------------------------------------------ binding

    def _new(self, kind: EvtchnStatusKind) -> Channel:
        for port in (*range(self._next, self._limit), *range(1, self._next)):
            if port not in self._channels:
                channel = self._channels[Port(port)] = Channel(Port(port), kind)
                self._next = 1  # Xen gives the lowest free port
                return channel
        raise XenError(errno.ENOSPC)

    def _get(self, port: int) -> Channel:
        channel = self._channels.get(Port(port))
        if channel is None:
            raise XenError(errno.EINVAL)
        return channel

    def _check_vcpu(self, vcpu: int) -> VcpuId:
        if vcpu >= len(self._vcpus):
            raise XenError(errno.ENOENT)
        return VcpuId(vcpu)

    def alloc_unbound(self, remote: Domid) -> Port:
        """A port that `remote` may bind to."""
        with self._lock:
            channel = self._new(EvtchnStatusKind.unbound)
            channel.remote_domid = remote
            return channel.port

    def connect(self, port: Port, remote: Domid, remote_port: Port, notify: Notify) -> None:
        """The far end binds to an unbound port; `notify` is called, in any thread, when this end sends."""
        with self._lock:
            channel = self._get(port)
            if channel.kind is not EvtchnStatusKind.unbound or channel.remote_domid != remote:
                raise XenError(errno.EINVAL)
            channel.kind = EvtchnStatusKind.interdomain
            channel.remote_port, channel.notify_remote = remote_port, notify

    def bind_loopback(self, own: Domid, remote_port: int) -> Port:
        """A port whose far end is another of this domain's own, unbound so far."""
        with self._lock:
            far = self._get(remote_port)
            if far.kind is not EvtchnStatusKind.unbound or far.remote_domid != own:
                raise XenError(errno.EINVAL)
            near = self._new(EvtchnStatusKind.interdomain)
            near.remote_domid, near.remote_port = own, far.port
            near.notify_remote = lambda: self.deliver(far.port)
            self.connect(far.port, own, near.port, lambda: self.deliver(near.port))
        self.deliver(near.port)  # Xen: an event may have been sent before the binding
        return near.port

    def bind_virq(self, virq: int, vcpu: int) -> Port:
        """A port for a virtual interrupt; a global one goes to vCPU 0 first."""
        if virq >= NR_VIRQS:
            raise XenError(errno.EINVAL)
        if virq not in PER_VCPU_VIRQS and vcpu != 0:
            raise XenError(errno.EINVAL)
        with self._lock:
            target = self._check_vcpu(vcpu)
            if (target, virq) in self._virqs:
                raise XenError(errno.EEXIST)
            channel = self._new(EvtchnStatusKind.virq)
            channel.virq, channel.vcpu = virq, target
            self._virqs[target, virq] = channel
            return channel.port

    def bind_ipi(self, vcpu: int) -> Port:
        """A port that interrupts a vCPU of the same domain."""
        with self._lock:
            target = self._check_vcpu(vcpu)
            channel = self._new(EvtchnStatusKind.ipi)
            channel.vcpu = target
            return channel.port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """Send a port's events to another vCPU; not for IPIs and per-vCPU VIRQs."""
        with self._lock:
            target = self._check_vcpu(vcpu)
            channel = self._get(port)
            if channel.kind is EvtchnStatusKind.ipi or (
                channel.kind is EvtchnStatusKind.virq and channel.virq in PER_VCPU_VIRQS
            ):
                raise XenError(errno.EINVAL)
            channel.vcpu = target

    def close(self, port: int) -> None:
        """Free a port; its pending bit goes too."""
        with self._lock:
            channel = self._get(port)
            del self._channels[channel.port]
            if channel.kind is EvtchnStatusKind.interdomain:
                self._unbind_far_end(channel)
            if channel.kind is EvtchnStatusKind.virq:
                del self._virqs[channel.vcpu if channel.virq in PER_VCPU_VIRQS else VcpuId(0), channel.virq]
            if self._shared is not None:
                self._clear_bit(self._layout.pending_offset, channel.port)

    def _unbind_far_end(self, channel: Channel) -> None:
        far = self._channels.get(channel.remote_port)
        if far is not None and far.remote_port == channel.port and far.kind is EvtchnStatusKind.interdomain:
            far.kind, far.notify_remote, far.remote_port = EvtchnStatusKind.unbound, None, Port(0)

    def reset(self) -> None:
        """Close every port."""
        with self._lock:
            for port in list(self._channels):
                self.close(port)

    def status(self, port: int) -> Channel | None:
        """A port's binding, None where it is closed; XenError(EINVAL) beyond the ABI's range."""
        if not 0 < port < self._limit:
            raise XenError(errno.EINVAL)
        with self._lock:
            return self._channels.get(Port(port))

    # ------------------------------------------------------------------------------------ events

    def attach(self, shared: SharedBytes, abi: Abi) -> None:
        """The guest has mapped its shared info: from now on bits have a place."""
        with self._lock:
            self._layout = TwoLevelLayout(abi)
            self._limit = self._layout.ports
            self._shared = shared

    def send(self, port: int) -> None:
        """EVTCHNOP_send: notify the far end of a port."""
        with self._lock:
            channel = self._get(port)
            notify, kind = channel.notify_remote, channel.kind
        if kind is EvtchnStatusKind.interdomain:
            if notify is not None:
                notify()
        elif kind is EvtchnStatusKind.ipi:
            self.deliver(Port(port))
        elif kind is not EvtchnStatusKind.unbound:
            raise XenError(errno.EINVAL)

    def send_virq(self, virq: int, vcpu: VcpuId) -> None:
        """Raise a virtual interrupt, if the guest has bound it.  From any thread."""
        channel = self._virqs.get((vcpu, virq))
        if channel is not None:
            self.deliver(channel.port)

    def deliver(self, port: Port) -> None:
        """Mark a port pending and tell its vCPU unless the guest has masked it.  From any thread."""
        with self._lock:
            channel = self._channels.get(port)
            shared = self._shared
            if channel is None or shared is None:
                return
            if not self._set_bit(shared, self._layout.pending_offset, port) and not self._bit(
                shared, self._layout.mask_offset, port
            ):
                self._select(channel)

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clear the mask and deliver what came meanwhile, once."""
        with self._lock:
            channel = self._get(port)
            shared = self._shared
            if shared is None:
                return
            if self._clear_bit(self._layout.mask_offset, port) and self._bit(shared, self._layout.pending_offset, port):
                self._select(channel)

    def _select(self, channel: Channel) -> None:
        vcpu = self._vcpus[channel.vcpu]
        if vcpu.info is None:
            return
        bit = 1 << channel.port // self._layout.word_bits
        shift = 8 * (self._layout.selector_offset % 8)
        vcpu.info.fetch_or_64(self._layout.selector_offset // 8 * 8, bit << shift)
        mark_pending(vcpu)

    def _set_bit(self, shared: SharedBytes, offset: int, port: int) -> bool:
        before = shared.fetch_or_64(offset + port // 64 * 8, 1 << port % 64)
        return bool(before >> port % 64 & 1)

    def _clear_bit(self, offset: int, port: int) -> bool:
        assert self._shared is not None
        before = self._shared.fetch_and_64(offset + port // 64 * 8, ~(1 << port % 64) & (1 << 64) - 1)
        return bool(before >> port % 64 & 1)

    def _bit(self, shared: SharedBytes, offset: int, port: int) -> bool:
        return bool(shared.read(offset + port // 8, 1)[0] >> port % 8 & 1)


def mark_pending(vcpu: Vcpu) -> None:
    """Set evtchn_upcall_pending and interrupt the vCPU.

    Xen interrupts only if the flag was clear, since its LAPIC remembers a vector that comes before the guest has enabled
    it.  KVM's LAPIC forgets it, and the flag would stay set for good: so interrupt each time.
    """
    if vcpu.info is not None:
        vcpu.info.fetch_or_64(0, 1)
        vcpu.upcall()


def mark_all_pending(vcpu: Vcpu, abi: Abi) -> None:
    """After vcpu_info has moved: let the guest look at every word, since events may have been set in the old place."""
    if vcpu.info is not None:
        vcpu.info.write(int(abi), b"\xff" * int(abi))
        mark_pending(vcpu)
