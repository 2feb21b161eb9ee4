"""Event channels of one domain: ports, what they are bound to, and their delivery over either ABI.

Everything that changes a port's state lives here.  One lock a domain guards it; the two ends of an interdomain channel
are locked one after the other, never together.  Source: xen/include/public/event_channel.h.
"""

import errno
import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm.xenabi.constants import NR_VIRQS, PAGE_BYTES, PER_VCPU_VIRQS, EvtchnStatusKind, Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn_abi import CONTROL_BLOCK_BYTES, DEFAULT_PRIORITY, LOWEST_PRIORITY, FifoAbi, TwoLevelAbi
from vmm.xenabi.interfaces import AddressSpace, EventTable, KernelPorts, SharedBytes, VcpuState
from vmm.xenabi.values import BACKEND_DOMID, Domid, Notify, Port, VcpuId, Wait, XenError

if TYPE_CHECKING:
    from vmm.xenabi.records import ChannelRecord, EventsRecord

BUSY_TRIES = 16
"""Free ports that are looked at before a fresh one is taken, where the guest still has them in a queue."""

PORTS_A_BUCKET = 64
"""Ports that come to be at a time: a number among them is a port, bound or not, and any other is refused."""

PIRQS = 56
"""Numbers that a PVH domain may bind as physical interrupts, though none comes (nr_pirqs: the machine's 24, and 32)."""

MAX_PORTS = 4096
"""Ports that a domain may have, whatever its ABI could name (xl's max_event_channels, there 1023 by default)."""


class Bell(Protocol):
    """How a back end in this process is told of an event."""

    fd: int
    """An eventfd: whoever signals it rings the bell, too."""

    def ring(self) -> None:
        """From any thread."""
        ...


class Remote(NamedTuple):
    """The far end of a channel is a domain's port: another's, or the same domain's."""

    domid: Domid
    port: Port


class Backend(NamedTuple):
    """The far end is a back end in this process; without a bell, one that has yet to come back."""

    bell: Bell | None = None


class Channel:
    """One port: what it is bound to, and the vCPU that its events go to."""

    __slots__ = ("far", "kind", "pending_early", "port", "priority", "remote_domid", "vcpu", "virq")

    def __init__(self, port: Port, kind: EvtchnStatusKind) -> None:
        self.port = port
        self.kind = kind
        self.vcpu = VcpuId(0)
        self.virq = 0
        """The VIRQ, or the physical interrupt, that it is bound to."""
        self.priority = DEFAULT_PRIORITY
        self.pending_early = False
        self.remote_domid = Domid(0)
        """Who may bind to it, or has."""
        self.far: Remote | Backend | None = None

    @property
    def remote_port(self) -> Port:
        """The far end's port, 0 where it has none."""
        return self.far.port if isinstance(self.far, Remote) else Port(0)


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

    def observe(self, wanted: bool) -> None:
        """Every event is raised here."""

    def bind_ipi(self, port: Port, vcpu: VcpuId) -> None:
        """IPIs are sent here."""

    def bind_eventfd(self, port: Port, fd: int) -> None:
        """Back ends are rung here."""

    def forget(self, port: Port) -> None:
        """Nothing was known of it."""

    def timer_changed(self, vcpu: VcpuId) -> None:
        """Timers are kept here."""

    def stop(self) -> None:
        """There is nothing to stop."""


class EventChannels:
    """The ports of one domain.  Its lock guards the table; the pending and mask bits are the guest's as well."""

    def __init__(
        self,
        own: Domid,
        vcpus: Sequence[VcpuState],
        table: EventTable,
        peers: "Callable[[Domid], EventChannels | None]",
        limit: int = MAX_PORTS,
        kernel: KernelPorts | None = None,
    ) -> None:
        """`peers` finds another domain's ports by its domid; None where it has ended."""
        self._own = own
        self._vcpus = vcpus
        self._table = table
        self._peers = peers
        self._kernel = kernel or NoKernelPorts()
        self._most = limit
        self._ended = False
        self._lock = threading.RLock()
        self._waiters: list[Notify] = []
        self._channels: dict[Port, Channel] = {}
        self._virqs: dict[tuple[VcpuId, int], Channel] = {}
        self._free: list[int] = []
        self._fresh = 1
        self._shared: tuple[SharedBytes, Abi] | None = None
        self._abi: TwoLevelAbi | FifoAbi | None = None
        self._watcher: Watcher | None = None

    # ------------------------------------------------------------------------------------ binding

    @property
    def limit(self) -> int:
        """The first number that is no port: what the domain may have, or what its ABI can name."""
        return min(self._most, self._abi.ports) if self._abi is not None else self._most

    def _number(self) -> Port:
        """The lowest free port, as on Xen, but for one that the guest has yet to take out of a queue."""
        if self._ended:
            raise XenError(errno.ENOSPC)
        busy: list[int] = []
        found = None
        while self._free and found is None and (len(busy) < BUSY_TRIES or self._fresh >= self.limit):
            number = heapq.heappop(self._free)
            if number >= self.limit or (self._abi is not None and self._abi.is_busy(Port(number))):
                busy.append(number)
            else:
                found = number
        for number in busy:
            heapq.heappush(self._free, number)
        while found is None and self._fresh < self.limit:
            number, self._fresh = self._fresh, self._fresh + 1
            if self._abi is not None and self._abi.is_busy(Port(number)):
                heapq.heappush(self._free, number)
            else:
                found = number
        if found is None:
            raise XenError(errno.ENOSPC)
        return Port(found)

    def _new(self, kind: EvtchnStatusKind) -> Channel:
        port = self._number()
        channel = self._channels[port] = Channel(port, kind)
        return channel

    def _get(self, port: int) -> Channel:
        channel = self._channels.get(Port(port))
        if channel is None:
            raise XenError(errno.EINVAL)
        return channel

    def has(self, port: int) -> bool:
        """Whether a number is a port, bound or not; others are none yet, or never will be."""
        return port < min(-(-self._fresh // PORTS_A_BUCKET) * PORTS_A_BUCKET, self.limit)

    def _check_port(self, port: int) -> None:
        if not self.has(port):
            raise XenError(errno.EINVAL)

    def check_vcpu(self, vcpu: int) -> VcpuId:
        """The number as a vCPU's.  XenError(ENOENT)."""
        if vcpu >= len(self._vcpus):
            raise XenError(errno.ENOENT)
        return VcpuId(vcpu)

    def alloc_unbound(self, remote: Domid) -> Port:
        """A port that `remote` may bind to."""
        with self._lock:
            channel = self._new(EvtchnStatusKind.unbound)
            channel.remote_domid = remote
            return channel.port

    def connect(self, port: Port, remote: Domid, bell: Bell) -> None:
        """A back end in this process, acting for `remote`, binds to a port that is unbound, or comes back to its own.

        The bell is rung when the guest sends.  XenError(EINVAL).
        """
        with self._lock:
            channel = self._get(port)
            if channel.remote_domid != remote or not (
                channel.kind is EvtchnStatusKind.unbound or channel.far == Backend(None)
            ):
                raise XenError(errno.EINVAL)
            channel.kind, channel.far = EvtchnStatusKind.interdomain, Backend(bell)
            self._kernel.bind_eventfd(port, bell.fd)
            self._table.rings(port, bell.fd)

    def _connect_domain(self, port: Port, far: Remote) -> None:
        with self._lock:
            channel = self._get(port)
            if channel.kind is not EvtchnStatusKind.unbound or channel.remote_domid != far.domid:
                raise XenError(errno.EINVAL)
            channel.kind, channel.far = EvtchnStatusKind.interdomain, far

    def disconnect(self, port: Port, far: Remote | Backend) -> None:
        """The far end goes; the port waits for another."""
        with self._lock:
            channel = self._channels.get(port)
            if channel is not None and channel.kind is EvtchnStatusKind.interdomain and channel.far == far:
                self._forget(port)
                channel.kind, channel.far = EvtchnStatusKind.unbound, None

    def bind_interdomain(self, remote_domid: Domid, remote_port: int) -> Port:
        """A port whose far end is one that a domain has left unbound for this one.  XenError(EINVAL, ESRCH)."""
        remote = self if remote_domid == self._own else self._peers(remote_domid)
        if remote is None:  # a back end's domain is there, but has left nothing to bind to
            raise XenError(errno.EINVAL if remote_domid == BACKEND_DOMID else errno.ESRCH)
        with self._lock:
            port = self._number()
        far = Remote(remote_domid, Port(remote_port))
        try:
            remote._connect_domain(far.port, Remote(self._own, port))
        except XenError:
            with self._lock:
                heapq.heappush(self._free, port)
            raise
        with self._lock:  # the far end is there before anybody can close or send to this one
            if not self._ended:
                near = self._channels[port] = Channel(port, EvtchnStatusKind.interdomain)
                near.remote_domid, near.far = remote_domid, far
        if self._ended:
            remote.disconnect(far.port, Remote(self._own, port))
            raise XenError(errno.EINVAL)
        self.deliver(port)  # Xen: an event may have been sent before the binding
        return port

    def bind_virq(self, virq: int, vcpu: int) -> Port:
        """A port for a virtual interrupt; a global one goes to vCPU 0 first."""
        if virq >= NR_VIRQS:
            raise XenError(errno.EINVAL)
        if virq not in PER_VCPU_VIRQS and vcpu != 0:
            raise XenError(errno.EINVAL)
        with self._lock:
            target = self.check_vcpu(vcpu)
            if (target, virq) in self._virqs:
                raise XenError(errno.EEXIST)
            channel = self._new(EvtchnStatusKind.virq)
            channel.virq, channel.vcpu = virq, target
            self._virqs[target, virq] = channel
            self._describe(channel)
            if virq == Virq.TIMER:
                self._kernel.timer_changed(target)
            return channel.port

    def bind_pirq(self, pirq: int) -> Port:
        """A port for a physical interrupt: a PVH domain may bind it, and gets none."""
        if pirq >= PIRQS:
            raise XenError(errno.EINVAL)
        with self._lock:
            if any(found.kind is EvtchnStatusKind.pirq and found.virq == pirq for found in self._channels.values()):
                raise XenError(errno.EEXIST)
            channel = self._new(EvtchnStatusKind.pirq)
            channel.virq = pirq
            return channel.port

    def bind_ipi(self, vcpu: int) -> Port:
        """A port that interrupts a vCPU of the same domain."""
        with self._lock:
            target = self.check_vcpu(vcpu)
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
            target = self.check_vcpu(vcpu)
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
            self._forget(channel.port)
            if channel.kind is EvtchnStatusKind.virq:
                del self._virqs[channel.vcpu if channel.virq in PER_VCPU_VIRQS else VcpuId(0), channel.virq]
                if channel.virq == Virq.TIMER:
                    self._kernel.timer_changed(channel.vcpu)
            if self._abi is not None:
                self._abi.clear(channel)
            heapq.heappush(self._free, channel.port)
        if isinstance(channel.far, Remote):  # after the lock: two of them are never held
            remote = self if channel.far.domid == self._own else self._peers(channel.far.domid)
            if remote is not None:
                remote.disconnect(channel.far.port, Remote(self._own, channel.port))

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
            self._ended = True
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
        """A port's binding, None where it is closed; XenError(EINVAL) for what is no port."""
        self._check_port(port)
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
        if abi is Abi.X86_64 and not self._kernel.active:
            self._table.use_two_levels(shared.address)

    def init_control(self, vcpu: int, memory: SharedBytes) -> None:
        """EVTCHNOP_init_control: give a vCPU its control block; the first one changes to the FIFO ABI."""
        with self._lock:
            target = self.check_vcpu(vcpu)
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

    @property
    def uses_fifo(self) -> bool:
        """Whether the guest has changed to the FIFO ABI."""
        return isinstance(self._abi, FifoAbi)

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
            self._check_port(port)
            if not isinstance(self._abi, FifoAbi):
                raise XenError(errno.ENOSYS)
            if priority > LOWEST_PRIORITY:
                raise XenError(errno.EINVAL)
            channel = self._channels.get(Port(port))
            if channel is not None:
                channel.priority = priority
                self._describe(channel)

    def send(self, port: int) -> None:
        """EVTCHNOP_send: notify the far end of a port."""
        with self._lock:
            channel = self._get(port)
            far, kind = channel.far, channel.kind
        if isinstance(far, Backend):
            if far.bell is not None:
                far.bell.ring()
        elif isinstance(far, Remote):
            remote = self if far.domid == self._own else self._peers(far.domid)
            if remote is not None:
                remote.deliver(far.port)
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
                if self._watcher is not None and not self._watcher.allows(channel):
                    return
                vcpu = self._vcpus[channel.vcpu]
                told = self._abi.raise_event(channel, vcpu)
                if told:
                    mark_pending(vcpu)
                if self._watcher is not None:
                    self._watcher.delivered(channel, told)
                for stir in self._waiters:
                    stir()

    # ----------------------------------------------------------------------------------- waiting

    def poll(self, vcpu: VcpuState, ports: Sequence[int], deadline_ns: int | None) -> Wait:
        """SCHEDOP_poll: until one of the ports is pending, masked or not, or the guest has an upcall to take.

        XenError(EINVAL) for a port that is not bound to anything.
        """

        def woken() -> bool:
            return vcpu.interrupts_enabled() and _has_upcall(vcpu)

        if not woken():
            for port in ports:
                self._get(port)
                if self._is_pending(port):
                    break
        return Wait(lambda: any(map(self._is_pending, ports)) or woken(), deadline_ns)

    def _is_pending(self, port: int) -> bool:
        with self._lock:
            channel = self._channels.get(Port(port))
            if channel is None:
                return False
            return channel.pending_early or bool(self._abi and self._abi.is_pending(channel.port))

    def block(self, vcpu: VcpuState) -> Wait:
        """SCHEDOP_block: until the vCPU has an upcall pending."""
        return Wait(lambda: _has_upcall(vcpu))

    @contextmanager
    def watched(self, stir: Notify) -> Iterator[None]:
        """Meanwhile all events are raised here, and `stir` is called after each, in any thread, with the lock held."""
        with self._table.waiting():
            with self._lock:
                self._waiters.append(stir)
            try:
                yield
            finally:
                with self._lock:
                    self._waiters.remove(stir)

    def watch(self, watcher: Watcher | None, *, observed: bool) -> None:
        """Who looks on at events, and whether anybody wants to see all of them raised here; at any time."""
        with self._lock:
            self._watcher = watcher
            self._kernel.observe(observed)

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clear the mask and deliver what came meanwhile, once."""
        with self._lock:
            self._check_port(port)
            channel = self._channels.get(Port(port)) or Channel(Port(port), EvtchnStatusKind.closed)
            if self._abi is not None:
                vcpu = self._vcpus[channel.vcpu]
                if self._abi.unmask(channel, vcpu):
                    mark_pending(vcpu)

    # -------------------------------------------------------------------------------------- state

    def record(self) -> "EventsRecord":
        """The table as data; what is pending lies in the guest's memory."""
        from vmm.xenabi.records import EventsRecord

        with self._lock:
            fifo = self._abi if isinstance(self._abi, FifoAbi) else None
            return EventsRecord(
                tuple(_record(self._channels[port]) for port in sorted(self._channels)),
                None if fifo is None else fifo.blocks(),
                () if fifo is None else fifo.pages(),
                self._table.queues(),
            )

    def restore(self, record: "EventsRecord", memory: AddressSpace) -> None:
        """Be what another table was, once the guest's memory, shared info included, is there; this one is new.

        Back ends `connect` again, and the vCPUs' areas are theirs to place.
        """
        with self._lock:
            if record.fifo_blocks is not None:
                fifo = self._abi = FifoAbi(self._table)
                for vcpu, gpa in record.fifo_blocks:
                    fifo.add_block(vcpu, memory.shared(gpa, CONTROL_BLOCK_BYTES))
                for gpa in record.fifo_pages:
                    fifo.add_page(memory.shared(gpa, PAGE_BYTES))
            self._table.restore_queues(record.queues)
            for row in record.channels:
                channel = self._channels[row.port] = Channel(row.port, row.kind)
                channel.vcpu, channel.virq, channel.priority = row.vcpu, row.virq, row.priority
                channel.pending_early, channel.remote_domid = row.pending_early, row.remote_domid
                if row.kind is EvtchnStatusKind.interdomain:
                    channel.far = Remote(row.remote_domid, row.remote_port) if row.remote_port else Backend()
                elif row.kind is EvtchnStatusKind.virq:
                    self._virqs[row.vcpu if row.virq in PER_VCPU_VIRQS else VcpuId(0), row.virq] = channel
                self._describe(channel)
            top = max(self._channels, default=0)
            self._fresh = top + 1
            self._free = [port for port in range(1, top) if port not in self._channels]


def _record(channel: Channel) -> "ChannelRecord":
    from vmm.xenabi.records import ChannelRecord

    return ChannelRecord(
        channel.port, channel.kind, channel.vcpu, channel.virq, channel.priority, channel.pending_early,
        channel.remote_domid, channel.remote_port,
    )  # fmt: skip


def _has_upcall(vcpu: VcpuState) -> bool:
    return vcpu.info is None or vcpu.info.read(0, 1) != b"\0"


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
