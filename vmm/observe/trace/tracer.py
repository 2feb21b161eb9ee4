"""The tracer: put around a domain before it starts, it makes a record of all that happens and hands it on."""

import time
from collections.abc import Callable
from typing import Protocol

from vmm.kvm import Exit as KvmExit
from vmm.machine.domain import Domain
from vmm.machine.vcpu import Vcpu
from vmm.observe.trace.records import Event, Exit, Hypercall, Record, StoreMessage, source_of
from vmm.xenabi.evtchn import Channel, Watcher
from vmm.xenabi.hypercalls import name_of
from vmm.xenabi.state import Call
from vmm.xenabi.transport import PORT
from vmm.xenabi.values import Domid
from vmm.xenstore.server import Store
from vmm.xenstore.service import Xenstore
from vmm.xenstore.wire import Message


class Consumer(Protocol):
    """Whoever wants records; called in the threads in which things happen."""

    def take(self, record: Record) -> None: ...
    def close(self) -> None:
        """No more will come."""
        ...


class Tracer:
    """Makes records.  One for a whole run, with as many domains as that has; from any thread."""

    def __init__(self, consumers: list[Consumer]) -> None:
        self.consumers = consumers
        self._epoch = time.monotonic_ns()

    @property
    def elapsed_s(self) -> float:
        """Since it began, seconds."""
        return self.now_ns() / 1e9

    def attach(self, domain: Domain, xenstore: Xenstore) -> None:
        """Look on from now on; the domain has not started, and its configuration says `observed`."""
        domain.hypercall = self._around_hypercalls(domain)
        domain.events.watcher = _EventWatcher(self, domain, domain.events.watcher)
        for vcpu in domain.vcpus:
            for reason, handler in list(vcpu.exit_handlers.items()):
                vcpu.exit_handlers[reason] = self._around_exit(domain, vcpu, reason, handler)

        def watch(store: Store) -> None:
            store.watcher = self._on_store_message

        xenstore.run(watch)

    def emit(self, record: Record) -> None:
        """Hand a record on."""
        for consumer in self.consumers:
            consumer.take(record)

    def now_ns(self) -> int:
        """Since it began."""
        return time.monotonic_ns() - self._epoch

    def close(self) -> None:
        """The run is over."""
        for consumer in self.consumers:
            consumer.close()

    def _around_hypercalls(self, domain: Domain) -> Callable[[Call], int]:
        inner, clock, epoch, emit, domid = domain.hypercall, time.monotonic_ns, self._epoch, self.emit, domain.domid

        def hypercall(call: Call) -> int:
            number, vcpu = call.number, call.vcpu
            assert isinstance(vcpu, Vcpu)
            call.operand = None
            result: int | None = None
            rip = vcpu.kvm.regs.rip
            start = clock()
            try:
                result = inner(call)
                return result
            finally:
                end = clock()
                operand, call.operand = call.operand, None
                args = call.args  # those of sysctl and its like are known once it has been read
                emit(
                    Hypercall(
                        start - epoch,
                        domid,
                        vcpu.id,
                        name_of(number, args),
                        number,
                        args,
                        operand,
                        result,
                        end - start,
                        rip,
                    )
                )

        return hypercall

    def _around_exit(self, domain: Domain, vcpu: Vcpu, reason: int, handler: Callable[[], None]) -> Callable[[], None]:
        name = KvmExit(reason).name
        run = vcpu.kvm.run

        def handle() -> None:
            if (reason == KvmExit.IO and run.io.port == PORT and run.io.direction) or reason == KvmExit.XEN:
                handler()
                return
            start = time.monotonic_ns()
            detail = _detail(vcpu, reason)
            handler()
            end = time.monotonic_ns()
            self.emit(Exit(start - self._epoch, domain.domid, vcpu.id, name, detail, end - start))

        return handle

    def _on_store_message(self, domid: Domid, request: Message, answer: Message) -> None:
        self.emit(StoreMessage(self.now_ns(), domid, request, answer))


def _detail(vcpu: Vcpu, reason: int) -> str:
    run = vcpu.kvm.run
    if reason == KvmExit.IO:
        return f"{'out' if run.io.direction else 'in'} port {run.io.port:#x}, {run.io.size} bytes"
    if reason == KvmExit.MMIO:
        return f"{'write' if run.mmio.is_write else 'read'} at {run.mmio.phys_addr:#x}, {run.mmio.len} bytes"
    if reason in (KvmExit.X86_WRMSR, KvmExit.X86_RDMSR):
        return f"MSR {run.msr.index:#x}"
    return ""


class _EventWatcher:
    """Makes records of events, and asks who watched before whether they are delivered."""

    def __init__(self, tracer: Tracer, domain: Domain, before: Watcher | None) -> None:
        self._tracer = tracer
        self._domid = domain.domid
        self._before = before

    def allows(self, channel: Channel) -> bool:
        if self._before is None or self._before.allows(channel):
            return True
        self._emit(channel, told=False, dropped=True)
        return False

    def delivered(self, channel: Channel, told: bool) -> None:
        self._emit(channel, told=told, dropped=False)

    def _emit(self, channel: Channel, *, told: bool, dropped: bool) -> None:
        tracer = self._tracer
        tracer.emit(Event(tracer.now_ns(), self._domid, channel.vcpu, channel.port, source_of(channel), told, dropped))
