"""Hooks: how others look on at a domain, and take part in what happens, while it runs.

Whoever wants to be called says for what; hooks are put on and taken off at any time, any number of them, and the last that
was put on is the outermost.  A domain without hooks has nothing in its way; one with hooks leaves nothing to KVM's event
channels or the C loop, so that what happens is seen.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from vmm.xenabi.evtchn import Channel
from vmm.xenabi.state import Call
from vmm.xenabi.values import Domid, HypercallOutcome, VcpuId
from vmm.xenstore.wire import Message

Carry = Callable[[Call], HypercallOutcome]
Proceed = Callable[[], None]


class EventHook(Protocol):
    """Called with the event channels' lock held."""

    def allows(self, channel: Channel) -> bool:
        """Whether an event is delivered; else it is lost."""
        ...

    def delivered(self, channel: Channel, told: bool) -> None:
        """An event is pending; `told`: and its vCPU interrupted for it."""
        ...

    def dropped(self, channel: Channel) -> None:
        """An event is lost, since a hook did not allow it."""
        ...


class Hooks(NamedTuple):
    """What somebody wants to be called for; None for what not."""

    hypercall: Callable[[Call, Carry], HypercallOutcome] | None = None
    """Instead of a hypercall, in its vCPU's thread; the second argument carries it out."""
    exit: Callable[[VcpuId, int, Proceed], None] | None = None
    """Instead of handling one of KVM's exits (`kvm.Exit`), in its vCPU's thread; the last argument handles it."""
    event: EventHook | None = None
    store: Callable[[Domid, Message, Message], None] | None = None
    """After each request to xenstore, in its thread: who asked, what, and the answer."""
    clock: Callable[[int], int] | None = None
    """What a hypercall is told of the guest's system time, from what it is; nanoseconds, in any thread."""


class HookList:
    """The hooks of one domain.  `_lock` guards the list; `changed` is called after each change, in the caller's thread."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._changed = changed
        self._all: tuple[Hooks, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._all)

    def attach(self, hooks: Hooks) -> None:
        """Call these, too, from now on; twice does no harm."""
        with self._lock:
            if any(known is hooks for known in self._all):
                return
            self._all = (*self._all, hooks)
        self._changed()

    def detach(self, hooks: Hooks) -> None:
        """Call these no more; a call that has begun ends as it began."""
        with self._lock:
            self._all = tuple(known for known in self._all if known is not hooks)
        self._changed()

    # ------------------------------------------------------------------------- what they come to, together

    def around_hypercalls(self, carry: Carry) -> Carry:
        """A function that carries out a hypercall by way of all hooks; the given one where there are none."""
        for hook in [hooks.hypercall for hooks in self._all if hooks.hypercall is not None]:
            carry = _hypercall(hook, carry)
        return carry

    def around_exit(self, vcpu: VcpuId, reason: int, proceed: Proceed) -> Proceed:
        """A function that handles one kind of exit of one vCPU by way of all hooks."""
        for hook in [hooks.exit for hooks in self._all if hooks.exit is not None]:
            proceed = _exit(hook, vcpu, reason, proceed)
        return proceed

    def event_hook(self) -> EventHook | None:
        """All hooks on events in one; None where there are none."""
        found = [hooks.event for hooks in self._all if hooks.event is not None]
        return _Events(found) if found else None

    def time_ns(self, now: int) -> int:
        """What a hypercall is told of the time."""
        for hooks in self._all:
            if hooks.clock is not None:
                now = hooks.clock(now)
        return now

    def store_hooks(self) -> list[Callable[[Domid, Message, Message], None]]:
        """Those on xenstore's messages."""
        return [hooks.store for hooks in self._all if hooks.store is not None]


def _hypercall(hook: Callable[[Call, Carry], HypercallOutcome], carry: Carry) -> Carry:
    return lambda call: hook(call, carry)


def _exit(hook: Callable[[VcpuId, int, Proceed], None], vcpu: VcpuId, reason: int, proceed: Proceed) -> Proceed:
    return lambda: hook(vcpu, reason, proceed)


class _Events:
    """Several hooks on events: all of them have to allow one."""

    def __init__(self, hooks: list[EventHook]) -> None:
        self._hooks = hooks

    def allows(self, channel: Channel) -> bool:
        if all(hook.allows(channel) for hook in self._hooks):
            return True
        self.dropped(channel)
        return False

    def dropped(self, channel: Channel) -> None:
        for hook in self._hooks:
            hook.dropped(channel)

    def delivered(self, channel: Channel, told: bool) -> None:
        for hook in self._hooks:
            hook.delivered(channel, told)
