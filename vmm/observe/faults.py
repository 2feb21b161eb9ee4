"""Faults that a test asks for: hypercalls that fail, take long or answer wrongly, and events that get lost.

    Fail("grant_table_op.setup_table", errno=ENOMEM, every=100)
    Delay("sched_op.*", seconds=0.01)
    DropEvent("ipi", every=7)

Which call is hit depends on the calls before it and on the seed alone, so that a run can be repeated.
"""

import errno as errors
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from vmm.errors import UsageError
from vmm.machine.domain import Domain
from vmm.machine.hooks import Carry, Hooks
from vmm.observe.trace.filters import check_name, is_named
from vmm.observe.trace.records import source_of
from vmm.xenabi.evtchn import Channel
from vmm.xenabi.hypercalls import name_of, unfold
from vmm.xenabi.hypercalls.registry import entry_of
from vmm.xenabi.state import Call
from vmm.xenabi.values import HypercallOutcome, XenError

LONGEST_DELAY_S = 60


@dataclass(frozen=True)
class Fault:
    """What is hit, and how often: every so many times, the `at`-th time alone, or with a probability; at most `times`."""

    word: ClassVar[str]
    name: str
    every: int = 1
    at: int = 0
    probability: float = 1.0
    times: int = 0


@dataclass(frozen=True)
class Fail(Fault):
    """A hypercall is not carried out; the guest gets this errno."""

    word: ClassVar[str] = "fail"
    errno: int = errors.ENOMEM


@dataclass(frozen=True)
class Delay(Fault):
    """A hypercall takes so much longer."""

    word: ClassVar[str] = "delay"
    seconds: float = 0.01


@dataclass(frozen=True)
class Corrupt(Fault):
    """One bit of the structure that a hypercall answers in is wrong."""

    word: ClassVar[str] = "corrupt"


@dataclass(frozen=True)
class DropEvent(Fault):
    """An event does not arrive; `name` is its source as traces name it: virq_timer, ipi, interdomain."""

    word: ClassVar[str] = "drop"


class Injected(NamedTuple):
    """A fault that happened: which, at the `nth` call or event of that pattern, and what exactly it hit."""

    fault: Fault
    nth: int
    name: str


class _Rule:
    """A fault and its count of chances.  The injector's lock guards it."""

    def __init__(self, fault: Fault, seed: str) -> None:
        self.fault = fault
        self.count = 0
        self._hits = 0
        self.random = random.Random(seed)

    def due(self) -> bool:
        """Count one chance; whether it is taken."""
        fault = self.fault
        self.count += 1
        if fault.times and self._hits >= fault.times:
            return False
        chosen = self.count == fault.at if fault.at else self.count % fault.every == 0
        if chosen and fault.probability < 1:
            chosen = self.random.random() < fault.probability
        self._hits += chosen
        return chosen


class Injector:
    """Faults in one run.  `injected` tells what has happened; from any thread."""

    def __init__(self, faults: list[Fault], seed: int = 0) -> None:
        self._rules = [_Rule(fault, f"{seed} {index}") for index, fault in enumerate(faults)]
        self._lock = threading.Lock()
        self.injected: list[Injected] = []

    def attach(self, domain: Domain) -> Hooks:
        """Act on a domain from now on: the hooks, to be taken off again."""
        hooks = Hooks(hypercall=self._on_hypercall, event=_Dropper(self))
        domain.hooks.attach(hooks)
        return hooks

    def due(self, name: str, kinds: tuple[type[Fault], ...]) -> list[tuple[Fault, random.Random]]:
        """The faults that hit this call or event now."""
        found = []
        with self._lock:
            for rule in self._rules:
                if isinstance(rule.fault, kinds) and is_named(name, rule.fault.name) and rule.due():
                    self.injected.append(Injected(rule.fault, rule.count, name))
                    found.append((rule.fault, rule.random))
        return found

    def _on_hypercall(self, call: Call, carry: Carry) -> HypercallOutcome:
        with suppress(XenError):  # the hypercall itself will find that it cannot be read
            unfold(call)
        chosen = self.due(name_of(call.number, call.args), (Fail, Delay, Corrupt))
        for fault, _ in chosen:
            if isinstance(fault, Delay):
                time.sleep(fault.seconds)
        for fault, _ in chosen:
            if isinstance(fault, Fail):
                return -fault.errno
        call.operand = None
        result = carry(call)
        for fault, source in chosen:
            if isinstance(fault, Corrupt):
                _corrupt(call, source)
        return result


def _corrupt(call: Call, source: random.Random) -> None:
    entry = entry_of(call.number, call.args)
    if entry is None or not entry.out or call.operand is None:
        return
    data = bytearray(call.operand.pack(call.abi))
    bit = source.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    call.vcpu.write_virtual(call.args[entry.at], bytes(data))


class _Dropper:
    """Loses events."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def allows(self, channel: Channel) -> bool:
        return not self._injector.due(f"event.{source_of(channel)}", (DropEvent,))

    def delivered(self, channel: Channel, told: bool) -> None:
        pass

    def dropped(self, channel: Channel) -> None:
        pass


_KINDS: dict[str, type[Fault]] = {kind.word: kind for kind in (Fail, Delay, Corrupt, DropEvent)}
FORMS = (
    "fail:NAME[,errno=ENOMEM], delay:NAME[,seconds=0.01], corrupt:NAME or drop:SOURCE; "
    "each with every=N, at=N, probability=P, times=N"
)


def parse_fault(text: str) -> Fault:
    """One of FORMS.  UsageError."""
    word, _, rest = text.partition(":")
    name, *options = rest.split(",")
    kind = _KINDS.get(word)
    if kind is None or not name:
        raise UsageError(f"--fault takes {FORMS}, not {text!r}")
    check_name(name if kind is not DropEvent else f"event.{name.removeprefix('event.')}", "--fault")
    values: dict[str, int | float] = {}
    for option in options:
        key, _, value = option.partition("=")
        values[key] = _option(kind, key, value, text)
    return kind(name, **values)  # type: ignore[arg-type]


def _option(kind: type[Fault], key: str, value: str, text: str) -> int | float:
    try:
        if key == "errno" and kind is Fail:
            number = errors.__dict__[value] if value.isupper() else int(value)
            if not 0 < number < 4096:
                raise ValueError
            return int(number)
        if key == "seconds" and kind is Delay and 0 <= float(value) <= LONGEST_DELAY_S:
            return float(value)
        if key == "probability" and 0 <= float(value) <= 1:
            return float(value)
        if key in ("every", "at", "times") and int(value) > 0:
            return int(value)
    except (KeyError, ValueError, TypeError):
        pass
    raise UsageError(f"--fault {text}: {key}={value} is not understood; it takes {FORMS}")
