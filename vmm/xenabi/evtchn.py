"""Event channels of one domain: ports, what they are bound to, and their delivery over either ABI.

Everything that changes a port's state lives here.  One lock a domain guards it; the two ends of an interdomain channel
are locked one after the other, never together.  Source: xen/include/public/event_channel.h.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from vmm.xenabi.constants import NR_VIRQS, PER_VCPU_VIRQS, EvtchnStatusKind, Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn_abi import DEFAULT_PRIORITY, LOWEST_PRIORITY, FifoAbi, TwoLevelAbi
from vmm.xenabi.interfaces import EventTable, KernelPorts, SharedBytes, VcpuState
from vmm.xenabi.values import Domid, Notify, Port, VcpuId, XenError

MAX_PORTS = 4096
"""Ports that a domain may have, whatever its ABI could name (xl's max_event_channels, there 1023 by default)."""


class Channel:
    """One port: what it is bound to, and the vCPU that its events go to."""

    __slots__ = (
        "end_remote", "kind", "notify_remote", "pending_early", "port", "priority", "remote_domid", "remote_port", "vcpu",
        "virq",
    )  # fmt: skip

    def __init__(self, port: Port, kind: EvtchnStatusKind) -> None:
        self.port = port
        self.kind = kind
        self.vcpu = VcpuId(0)
        self.virq = 0
        self.priority = DEFAULT_PRIORITY
        self.pending_early = False
        self.remote_domid = Domid(0)
        self.remote_port = Port(0)
        self.notify_remote: Notify | None = None
        self.end_remote: Notify | None = None
        """What the far end, in another domain, is to be told when this one closes."""


class Watcher(Protocol):
    """Somebody who looks on; called with the lock held."""

    def allows(self, channel: Channel) -> bool:
        """Whether an event is delivered; else it is lost."""
        ...

    def delivered(self, channel: Channel, told: bool) -> None:
        """An event is pending; `told`: and its vCPU interrupted for it."""
        ...


class NoKernelPorts:
    """Everything is done here."""

    active = False

    def bind_ipi(self, port: Port, vcpu: VcpuId) -> None:
        pass

    def bind_eventfd(self, port: Port, fd: int) -> None:
        pass

    def forget(self, port: Port) -> None:
        pass

    def timer_changed(self, vcpu: VcpuId) -> None:
        pass

    def wake(self, vcpu: VcpuId) -> None:
        pass

    def stop(self) -> None:
        pass


class EventChannels:
    """The ports of one domain.  Its lock guards the table; the pending and mask bits are the guest's as well."""

    def __init__(
        self, vcpus: Sequence[VcpuState], table: EventTable, limit: int = MAX_PORTS, kernel: KernelPorts | None = None
    ) -> None:
        self._vcpus = vcpus
        self._table = table
        self._kernel = kernel or NoKernelPorts()
        self._limit = limit
        self._lock = threading.RLock()
        self._raised = threading.Condition(self._lock)
        self._waiting = 0
        self._channels: dict[Port, Channel] = {}
        self._virqs: dict[tuple[VcpuId, int], Channel] = {}
        self._next = 1
        self._shared: tuple[SharedBytes, Abi] | None = None
        self._abi: TwoLevelAbi | FifoAbi | None = None
        self.watcher: Watcher | None = None
        """Set before the domain starts."""

    # ------------------------------------------------------------------------------------ binding

    def _new(self, kind: EvtchnStatusKind) -> Channel:
        for port in (*range(self._next, self._limit), *range(1, self._next)):
            if port not in self._channels and not (self._abi and self._abi.is_busy(Port(port))):
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

    def connect(
        self,
        port: Port,
        remote: Domid,
        remote_port: Port,
        notify: Notify,
        fd: int | None = None,
        end_remote: Notify | None = None,
    ) -> None:
        """The far end binds to an unbound port; `notify` is called, in any thread, when this end sends.

        An eventfd may say the same, so that nobody has to call.
        """
        with self._lock:
            channel = self._get(port)
            if channel.kind is not EvtchnStatusKind.unbound or channel.remote_domid != remote:
                raise XenError(errno.EINVAL)
            channel.kind = EvtchnStatusKind.interdomain
            channel.remote_port, channel.notify_remote, channel.end_remote = remote_port, notify, end_remote
            if fd is not None:
                self._kernel.bind_eventfd(port, fd)
                self._table.rings(port, fd)

    def disconnect(self, port: Port, notify: Notify) -> None:
        """The far end that `connect` has bound with this `notify` goes; the port waits for another."""
        with self._lock:
            channel = self._channels.get(port)
            if channel is not None and channel.notify_remote == notify:
                self._forget(port)
                _unbind(channel)

    def bind_remote(self, own: Domid, remote: "EventChannels", remote_domid: Domid, remote_port: int) -> Port:
        """A port whose far end is another domain's, which that has left unbound for this one.  XenError(EINVAL)."""
        with self._lock:
            near = self._new(EvtchnStatusKind.interdomain)
            near.remote_domid, near.remote_port = remote_domid, Port(remote_port)

        def to_far() -> None:
            remote.deliver(Port(remote_port))

        def to_near() -> None:
            self.deliver(near.port)

        near.notify_remote, near.end_remote = to_far, lambda: remote.disconnect(Port(remote_port), to_near)
        try:
            remote.connect(
                Port(remote_port), own, near.port, to_near, end_remote=lambda: self.disconnect(near.port, to_far)
            )
        except XenError:
            near.end_remote = None
            self.close(near.port)
            raise
        self.deliver(near.port)  # Xen: an event may have been sent before the binding
        return near.port

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
            self._describe(channel)
            if virq == Virq.TIMER:
                self._kernel.timer_changed(target)
            return channel.port

    def bind_ipi(self, vcpu: int) -> Port:
        """A port that interrupts a vCPU of the same domain."""
        with self._lock:
            target = self._check_vcpu(vcpu)
            channel = self._new(EvtchnStatusKind.ipi)
            channel.vcpu = target
            self._kernel.bind_ipi(channel.port, target)
            self._describe(channel)
            return channel.port

    def ipis(self) -> list[tuple[Port, VcpuId]]:
        """The IPI ports, and the vCPUs that they interrupt."""
        with self._lock:
            return [(found.port, found.vcpu) for found in self._channels.values() if found.kind is EvtchnStatusKind.ipi]

    def _describe(self, channel: Channel) -> None:
        # What the vCPUs' threads may do by themselves.
        if channel.kind is EvtchnStatusKind.ipi:
            self._table.interrupts(channel.port, channel.vcpu, channel.priority)
        elif channel.kind is EvtchnStatusKind.virq and channel.virq == Virq.TIMER:
            self._table.times(channel.port, channel.vcpu, channel.priority)

    def _forget(self, port: Port) -> None:
        self._kernel.forget(port)
        self._table.forget(port)

    def port_of_virq(self, virq: int, vcpu: VcpuId) -> Port | None:
        """Where a virtual interrupt is bound."""
        found = self._virqs.get((vcpu, virq))
        return None if found is None else found.port

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
            end_remote = channel.end_remote
            del self._channels[channel.port]
            if channel.kind is EvtchnStatusKind.interdomain:
                self._unbind_far_end(channel)
            self._forget(channel.port)
            if channel.kind is EvtchnStatusKind.virq:
                del self._virqs[channel.vcpu if channel.virq in PER_VCPU_VIRQS else VcpuId(0), channel.virq]
                if channel.virq == Virq.TIMER:
                    self._kernel.timer_changed(channel.vcpu)
            if self._abi is not None:
                self._abi.clear(channel)
        if end_remote is not None:
            end_remote()

    def _unbind_far_end(self, channel: Channel) -> None:
        far = self._channels.get(channel.remote_port)
        if far is not None and far.remote_port == channel.port and far.kind is EvtchnStatusKind.interdomain:
            _unbind(far)

    def reset(self) -> None:
        """Close every port and go back to the 2-level ABI."""
        self.close_all()
        with self._lock:
            self._table.forget_abi()
            if self._shared is not None:
                self._use_two_levels(*self._shared)

    def end(self) -> None:
        """The domain ends: close every port, and make no more; its memory goes next."""
        with self._lock:
            self._limit = 0
        self.close_all()

    def close_all(self) -> None:
        """Close every port."""
        for port in list(self._channels):
            with suppress(XenError):  # another thread was faster
                self.close(port)

    def channels(self) -> list[Channel]:
        """All of them, by port."""
        with self._lock:
            return [self._channels[port] for port in sorted(self._channels)]

    def status(self, port: int) -> Channel | None:
        """A port's binding, None where it is closed; XenError(EINVAL) beyond the ABI's range."""
        if not 0 < port < self._limit:
            raise XenError(errno.EINVAL)
        with self._lock:
            return self._channels.get(Port(port))

    # ------------------------------------------------------------------------------------ events

    def attach(self, shared: SharedBytes, abi: Abi) -> None:
        """The guest has mapped its shared info: from now on the 2-level ABI's bits have a place."""
        with self._lock:
            self._shared = shared, abi
            if not isinstance(self._abi, FifoAbi):
                self._use_two_levels(shared, abi)

    def _use_two_levels(self, shared: SharedBytes, abi: Abi) -> None:
        self._abi = TwoLevelAbi(shared, abi)
        self._limit = min(self._limit, self._abi.ports)
        if abi is Abi.X86_64 and not self._kernel.active:
            self._table.use_two_levels(shared.address)

    def init_control(self, vcpu: int, memory: SharedBytes) -> None:
        """EVTCHNOP_init_control: give a vCPU its control block; the first one changes to the FIFO ABI."""
        with self._lock:
            target = self._check_vcpu(vcpu)
            fifo = self._abi
            if not isinstance(fifo, FifoAbi):
                self._kernel.stop()
                fifo = FifoAbi(self._table)
                for channel in self._channels.values():
                    channel.pending_early = self._abi is not None and self._abi.is_pending(channel.port)
            if fifo.has_block(target):
                raise XenError(errno.EINVAL)
            fifo.add_block(target, memory)
            self._abi = fifo

    def expand_array(self, memory: SharedBytes) -> None:
        """EVTCHNOP_expand_array: another page of event words; what was raised before is delivered."""
        with self._lock:
            fifo = self._abi
            if not isinstance(fifo, FifoAbi):
                raise XenError(errno.EOPNOTSUPP)
            if not fifo.add_page(memory):
                raise XenError(errno.ENOSPC)
            for channel in self._channels.values():
                if channel.pending_early:
                    channel.pending_early = False
                    self.deliver(channel.port)

    def set_priority(self, port: int, priority: int) -> None:
        """EVTCHNOP_set_priority: 0 is the highest, 15 the lowest; FIFO only."""
        with self._lock:
            if not isinstance(self._abi, FifoAbi):
                raise XenError(errno.ENOSYS)
            if priority > LOWEST_PRIORITY:
                raise XenError(errno.EINVAL)
            channel = self._get(port)
            channel.priority = priority
            self._describe(channel)

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
            if channel is not None and self._abi is not None:
                if self.watcher is not None and not self.watcher.allows(channel):
                    return
                vcpu = self._vcpus[channel.vcpu]
                told = self._abi.raise_event(channel, vcpu)
                if told:
                    mark_pending(vcpu)
                if self.watcher is not None:
                    self.watcher.delivered(channel, told)
                self._kernel.wake(channel.vcpu)
                if self._waiting:
                    self._raised.notify_all()

    def poll(self, vcpu: VcpuState, ports: Sequence[int], timeout_s: float | None) -> None:
        """SCHEDOP_poll: return once one of the ports is pending, masked or not, or the guest has an upcall to take.

        XenError(EINVAL) for a port beyond the ABI's range.
        """
        for port in ports:
            self.status(port)
        self._wait(
            vcpu,
            lambda: any(map(self._is_pending, ports)) or (vcpu.interrupts_enabled() and self._has_upcall(vcpu)),
            timeout_s,
        )

    def _is_pending(self, port: int) -> bool:
        channel = self._channels.get(Port(port))
        return channel is not None and (channel.pending_early or bool(self._abi and self._abi.is_pending(channel.port)))

    def block(self, vcpu: VcpuState) -> None:
        """SCHEDOP_block: return once the vCPU has an upcall pending."""
        self._wait(vcpu, lambda: self._has_upcall(vcpu), None)

    def _has_upcall(self, vcpu: VcpuState) -> bool:
        return vcpu.info is None or vcpu.info.read(0, 1) != b"\0"

    def _wait(self, vcpu: VcpuState, done: Callable[[], bool], timeout_s: float | None) -> None:
        vcpu.waits()
        with self._raised, self._table.waiting():
            self._waiting += 1
            try:
                self._raised.wait_for(lambda: done() or vcpu.wanted(), timeout_s)
            finally:
                self._waiting -= 1

    def wake(self) -> None:
        """Let the vCPUs that wait for events look at what else there is to do."""
        with self._raised:
            self._raised.notify_all()

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clear the mask and deliver what came meanwhile, once."""
        with self._lock:
            channel = self._get(port)
            if self._abi is not None:
                vcpu = self._vcpus[channel.vcpu]
                if self._abi.unmask(channel, vcpu):
                    mark_pending(vcpu)


def _unbind(channel: Channel) -> None:
    channel.kind, channel.notify_remote, channel.end_remote = EvtchnStatusKind.unbound, None, None
    channel.remote_port = Port(0)


def mark_pending(vcpu: VcpuState) -> None:
    """Set evtchn_upcall_pending and interrupt the vCPU.

    Xen interrupts only if the flag was clear, since its LAPIC remembers a vector that comes before the guest has enabled
    it.  KVM's LAPIC forgets it, and the flag would stay set for good: so interrupt each time.
    """
    if vcpu.info is not None:
        vcpu.info.fetch_or_64(0, 1)
        vcpu.upcall()


def mark_all_pending(vcpu: VcpuState, abi: Abi) -> None:
    """After vcpu_info has moved: let the guest look at every word, since events may have been set in the old place."""
    if vcpu.info is not None:
        vcpu.info.write(int(abi), b"\xff" * int(abi))
        mark_pending(vcpu)
