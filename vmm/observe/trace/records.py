"""What is recorded: hypercalls, events, xenstore messages and exits, each with its time, domain and outcome.

Times are nanoseconds since the trace began.  A record has a `kind`, a `name` that filters match, and `failed`.
"""

import errno
from typing import Any, ClassVar, NamedTuple

from vmm.observe.trace.decode import fields_of
from vmm.observe.trace.symbols import Symbols
from vmm.xenabi.constants import Virq
from vmm.xenabi.cstruct import Struct
from vmm.xenabi.evtchn import Channel
from vmm.xenabi.values import Domid, Port, VcpuId
from vmm.xenstore.wire import Kind, Message

KINDS = ("hypercall", "event", "xenstore", "exit")
_MAX_ERRNO = 4095


class Hypercall:
    """One hypercall.  `result` is what the guest got, None where it was told to issue the call again."""

    kind: ClassVar[str] = "hypercall"
    __slots__ = ("_fields", "args", "domid", "duration_ns", "name", "number", "operand", "result", "rip", "time_ns", "vcpu")

    def __init__(
        self,
        time_ns: int,
        domid: Domid,
        vcpu: VcpuId,
        name: str,
        number: int,
        args: tuple[int, ...],
        operand: Struct | None,
        result: int | None,
        duration_ns: int,
        rip: int,
    ) -> None:
        self.time_ns, self.domid, self.vcpu, self.name = time_ns, domid, vcpu, name
        self.number, self.args, self.operand = number, args, operand
        self.result, self.duration_ns, self.rip = result, duration_ns, rip
        self._fields: list[tuple[str, str]] | None = None

    @property
    def failed(self) -> bool:
        """Whether the guest got an errno."""
        return self.result is not None and -_MAX_ERRNO <= self.result < 0

    @property
    def error(self) -> str | None:
        """The errno's name, where it failed."""
        if self.result is None or not self.failed:
            return None
        return errno.errorcode.get(-self.result, str(-self.result))

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The arguments and the structure's fields by name, as text; names are empty where nobody knows them."""
        if self._fields is None:
            self._fields = fields_of(self.number, self.args, self.operand)
        return self._fields

    @property
    def decoded(self) -> bool:
        """Whether every argument has a name."""
        return all(name for name, _ in self.fields)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={text}" if name else text for name, text in self.fields)
        return f"{self.name}({values}) = {self.result if self.error is None else self.error}"


class Event(NamedTuple):
    """An event that reached a port, or was dropped on its way there."""

    time_ns: int
    domid: Domid
    vcpu: VcpuId
    port: Port
    source: str
    told: bool
    dropped: bool = False

    @property
    def kind(self) -> str:
        """Always `event`."""
        return "event"

    @property
    def name(self) -> str:
        """Its source behind `event.`."""
        return f"event.{self.source}"

    @property
    def failed(self) -> bool:
        """An event that is lost has failed."""
        return self.dropped


class StoreMessage(NamedTuple):
    """A request to xenstore, and its answer."""

    time_ns: int
    domid: Domid
    request: Message
    answer: Message

    @property
    def kind(self) -> str:
        """Always `xenstore`."""
        return "xenstore"

    @property
    def name(self) -> str:
        """The request behind `xenstore.`."""
        known = self.request.kind in Kind._value2member_map_
        return f"xenstore.{Kind(self.request.kind).name.lower() if known else self.request.kind}"

    @property
    def failed(self) -> bool:
        """Whether xenstore has refused it."""
        return self.answer.kind == Kind.ERROR


class Exit(NamedTuple):
    """A vCPU left the guest for something that is no hypercall."""

    time_ns: int
    domid: Domid
    vcpu: VcpuId
    reason: str
    detail: str
    duration_ns: int

    @property
    def kind(self) -> str:
        """Always `exit`."""
        return "exit"

    @property
    def failed(self) -> bool:
        """An exit never fails."""
        return False

    @property
    def name(self) -> str:
        """KVM's reason behind `exit.`."""
        return f"exit.{self.reason.lower()}"


Record = Hypercall | Event | StoreMessage | Exit


def source_of(channel: Channel) -> str:
    """What a port's events come from."""
    if channel.kind.name == "virq":
        return (
            f"virq_{Virq(channel.virq).name.lower()}" if channel.virq in Virq._value2member_map_ else f"virq_{channel.virq}"
        )
    return channel.kind.name


def details(record: Record, symbols: Symbols | None = None) -> dict[str, Any]:
    """What is particular to a record, as plain values; with the symbol that a hypercall came from, where there are any."""
    if isinstance(record, Hypercall):
        symbol = {"symbol": symbols.name(record.rip)} if symbols is not None else {}
        return {
            "vcpu": record.vcpu,
            "arguments": dict(record.fields),
            "result": record.result,
            "error": record.error,
            "duration_ns": record.duration_ns,
            "rip": f"{record.rip:#x}",
            **symbol,
        }
    if isinstance(record, Event):
        return {"vcpu": record.vcpu, "port": record.port, "upcall": record.told, "dropped": record.dropped}
    if isinstance(record, StoreMessage):
        return {
            "transaction": record.request.transaction_id,
            "request": text_of(record.request.payload),
            "answer": text_of(record.answer.payload),
            "failed": record.failed,
        }
    return {"vcpu": record.vcpu, "detail": record.detail, "duration_ns": record.duration_ns}


def as_dict(record: Record, symbols: Symbols | None = None) -> dict[str, Any]:
    """A whole record as plain values."""
    common = {"kind": record.kind, "time_ns": record.time_ns, "domid": record.domid, "name": record.name}
    return common | details(record, symbols)


def text_of(payload: bytes) -> str:
    """A xenstore payload for people: its strings in quotes."""
    parts = payload.rstrip(b"\0").split(b"\0")
    return ", ".join(f'"{part.decode("ascii", "backslashreplace")}"' for part in parts)
