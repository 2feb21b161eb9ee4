"""The tracer: put on a domain, it makes a record of all that happens there and hands it on."""

import time
from collections.abc import Callable
from typing import Protocol

from vmm.kvm import Exit as KvmExit
from vmm.machine.domain import Domain
from vmm.machine.hooks import Carry, Hooks, Proceed
from vmm.machine.vcpu import Vcpu
from vmm.observe.trace.records import Event, Exit, Hypercall, Record, StoreMessage, source_of
from vmm.xenabi.evtchn import Channel
from vmm.xenabi.hypercalls import name_of
from vmm.xenabi.state import Call
from vmm.xenabi.transport import PORT
from vmm.xenabi.values import Domid, HypercallOutcome, Restart, VcpuId, Wait
from vmm.xenstore.wire import Message


class Consumer(Protocol):
    """Whoever wants records; called in the threads in which things happen."""

    def take(self, record: Record) -> None:
        """One record."""
        ...

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

    def attach(self, domain: Domain) -> Hooks:
        """Look on at a domain from now on: the hooks, to be taken off again."""
        hooks = Hooks(
            hypercall=self._on_hypercall,
            exit=_exits(self, domain),
            event=_EventHook(self, domain),
            store=self._on_store_message,
        )
        domain.hooks.attach(hooks)
        return hooks

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

    def _on_hypercall(self, call: Call, carry: Carry) -> HypercallOutcome:
        vcpu = call.vcpu
        assert isinstance(vcpu, Vcpu)
        call.operand = None
        rip, start = vcpu.kvm.regs.rip, time.monotonic_ns()
        number = call.number

        def emit(result: int | Restart | None) -> None:
            # Those arguments of sysctl and its like that are in memory are known once it has been read.
            known, args, operand = result if isinstance(result, int) else None, call.args, call.operand
            end = time.monotonic_ns()
            name = name_of(number, args)
            call.operand = None
            self.emit(
                Hypercall(
                    start - self._epoch, call.domain.domid, vcpu.id, name, number, args, operand, known, end - start, rip
                )
            )

        outcome: HypercallOutcome | None = None
        try:
            outcome = carry(call)
        finally:
            if outcome is None or not isinstance(outcome, Wait):
                emit(outcome)
        if not isinstance(outcome, Wait):
            return outcome
        wait = outcome

        def finish() -> int | Restart:
            answer = wait.finish()
            emit(answer)
            return answer

        return wait._replace(finish=finish)

    def _on_store_message(self, domid: Domid, request: Message, answer: Message) -> None:
        self.emit(StoreMessage(self.now_ns(), domid, request, answer))


def _exits(tracer: Tracer, domain: Domain) -> Callable[[VcpuId, int, Proceed], None]:
    def on_exit(vcpu_id: VcpuId, reason: int, proceed: Proceed) -> None:
        vcpu = domain.vcpus[vcpu_id]
        run = vcpu.kvm.run
        if (reason == KvmExit.IO and run.io.port == PORT and run.io.direction) or reason == KvmExit.XEN:
            proceed()
            return
        start = tracer.now_ns()
        detail = _detail(vcpu, reason)
        proceed()
        tracer.emit(Exit(start, domain.domid, vcpu_id, KvmExit(reason).name, detail, tracer.now_ns() - start))

    return on_exit


def _detail(vcpu: Vcpu, reason: int) -> str:
    run = vcpu.kvm.run
    if reason == KvmExit.IO:
        return f"{'out' if run.io.direction else 'in'} port {run.io.port:#x}, {run.io.size} bytes"
    if reason == KvmExit.MMIO:
        return f"{'write' if run.mmio.is_write else 'read'} at {run.mmio.phys_addr:#x}, {run.mmio.len} bytes"
    if reason in (KvmExit.X86_WRMSR, KvmExit.X86_RDMSR):
        return f"MSR {run.msr.index:#x}"
    return ""


class _EventHook:
    """Makes records of events."""

    def __init__(self, tracer: Tracer, domain: Domain) -> None:
        self._tracer = tracer
        self._domid = domain.domid

    def allows(self, channel: Channel) -> bool:
        return True

    def delivered(self, channel: Channel, told: bool) -> None:
        self._emit(channel, told=told, dropped=False)

    def dropped(self, channel: Channel) -> None:
        self._emit(channel, told=False, dropped=True)

    def _emit(self, channel: Channel, *, told: bool, dropped: bool) -> None:
        tracer = self._tracer
        tracer.emit(Event(tracer.now_ns(), self._domid, channel.vcpu, channel.port, source_of(channel), told, dropped))
