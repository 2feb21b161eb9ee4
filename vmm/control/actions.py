"""What can be asked of running guests, as their own process carries it out."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from vmm.config.domain import DomainConfig, parse_size
from vmm.errors import PyvmmError, UsageError
from vmm.host.chardev import Tee
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack import lifecycle


class Running(NamedTuple):
    """A guest that this process runs."""

    domain: Domain
    config: DomainConfig
    tee: Tee
    """Where its console's output goes."""


class Session(Protocol):
    """The guests of one process."""

    @property
    def hypervisor(self) -> Hypervisor:
        """The hypervisor of all of them."""
        ...

    def running(self) -> list[Running]:
        """All of them now, the first one first."""
        ...

    def destroy(self, domain: Domain) -> None:
        """End one at once."""
        ...

    def debug(self, domain: Domain, where: str) -> None:
        """Let GDB attach to one.  PyvmmError."""
        ...


class Actions:
    """The requests of the control socket.  Called in its clients' threads."""

    def __init__(self, session: Session, started_s: float) -> None:
        """`started_s` is when the guests were started, on the monotonic clock."""
        self._session = session
        self._started = started_s
        self._table: dict[str, Callable[[Running, dict[str, Any]], Any]] = {
            "shutdown": lambda guest, request: self._ask(guest, "poweroff"),
            "reboot": lambda guest, request: self._ask(guest, "reboot"),
            "destroy": lambda guest, request: session.destroy(guest.domain),
            "pause": lambda guest, request: guest.domain.pause(),
            "unpause": lambda guest, request: guest.domain.unpause(),
            "sysrq": lambda guest, request: lifecycle.press_sysrq(session.hypervisor, guest.domain, _text(request, "key")),
            "set-memory": lambda guest, request: lifecycle.set_memory(
                session.hypervisor, guest.domain, parse_size(_text(request, "size"))
            ),
            "set-vcpus": lambda guest, request: lifecycle.set_vcpus(
                session.hypervisor, guest.domain, _number(request, "count")
            ),
            "gdb": lambda guest, request: session.debug(guest.domain, _text(request, "where")),
        }

    def answer(self, request: dict[str, Any]) -> Any:
        """Carry out a request: its value.  PyvmmError."""
        what = request.get("do")
        if what == "status":
            return [self._status(guest) for guest in self._session.running()]
        verb, _, kind = what.partition("-") if isinstance(what, str) else ("", "", "")
        action = self._table.get(what) if isinstance(what, str) else None
        if verb in ("attach", "detach") and kind in _kinds():
            action = _attach if verb == "attach" else _detach
        if action is None:
            known = [*self._table, "status", "console", "trace", "stats"]
            known += [f"{verb}-{kind}" for verb in ("attach", "detach") for kind in _kinds()]
            raise UsageError(f"a guest can be asked for {', '.join(sorted(known))}")
        return action(self._find(request), request)

    def console(self, request: dict[str, Any]) -> tuple[Tee, Callable[[bytes], None]]:
        """A guest's console."""
        guest = self._find(request)
        return guest.tee, guest.domain.console.type

    def stream(self, request: dict[str, Any], left: Callable[[], bool]) -> Iterator[str]:
        """What a guest does, as text, from now on.  PyvmmError."""
        from vmm.observe import live  # only whoever looks on pays for it
        from vmm.observe.trace.filters import parse_filter

        domain = self._find(request).domain
        if request["do"] == "stats":
            seconds = request.get("seconds")
            if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < 1e6):
                raise UsageError(f"stats takes seconds above 0, not {seconds!r}")
            return (f"{row}\n" for row in live.count(domain, seconds, left))
        text = request.get("filter", "")
        if not isinstance(text, str):
            raise UsageError("a filter is a text")
        parse_filter(text)
        return live.follow(domain, text, as_json=bool(request.get("json")), left=left)

    def _find(self, request: dict[str, Any]) -> Running:
        """The guest that a request names, by name or domid; the first one where it names none.  UsageError."""
        running, wanted = self._session.running(), request.get("guest")
        if wanted is None and running:
            return running[0]
        for guest in running:
            if wanted in (guest.config.name, guest.domain.domid, str(guest.domain.domid)):
                return guest
        raise UsageError(f"no guest {wanted!r} runs here; those that do: {', '.join(g.config.name for g in running)}")

    def _status(self, guest: Running) -> dict[str, Any]:
        domain = guest.domain
        return {
            "name": guest.config.name,
            "pid": os.getpid(),
            "domid": domain.domid,
            "state": domain.life.state.value,
            "memory_mib": domain.memory.pages >> 8,
            "vcpus": sum(vcpu.online for vcpu in domain.vcpus),
            "seconds": round(time.monotonic() - self._started, 1),
            "image": str(guest.config.image),
        }

    def _ask(self, guest: Running, action: str) -> None:
        lifecycle.ask_or_refuse(self._session.hypervisor, guest.domain, action)


def _kinds() -> list[str]:
    from vmm.devices.kinds import KINDS  # when somebody asks

    return list(KINDS)


def _attach(guest: Running, request: dict[str, Any]) -> str:
    if guest.domain.devices is None:
        raise UsageError("this guest's xenstore is in dom0, so its devices are for dom0 to give")
    return guest.domain.devices.attach_text(request["do"].partition("-")[2], _text(request, "spec"))


def _detach(guest: Running, request: dict[str, Any]) -> None:
    if guest.domain.devices is None:
        raise UsageError("this guest's xenstore is in dom0, so its devices are for dom0 to take")
    kind = request["do"].partition("-")[2]
    guest.domain.devices.detach(kind, _text(request, "device"), force=bool(request.get("force")))


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise UsageError(f"the request lacks {key!r}")
    return value


def _number(request: dict[str, Any], key: str) -> int:
    value = request.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise PyvmmError(f"the request lacks {key!r}, a number")
    return value
