"""Xenbus: a device's back end and its front end find each other in xenstore and follow each other's state.

The state machine of every device lives here and runs in xenstore's thread; a back end's data is moved in threads of its
own.  Source: xen/include/public/io/xenbus.h.
"""

import re
import threading
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

from vmm.devices.kind import Bus
from vmm.devices.ring.granted import GrantedPages
from vmm.errors import PyvmmError
from vmm.host import log
from vmm.host.eventloop import Doorbell
from vmm.xenabi import evtchn
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import AddressSpace
from vmm.xenabi.values import BACKEND_DOMID, Domid, Port, XenError
from vmm.xenstore.layout import guests_device, toolstacks
from vmm.xenstore.server import Store
from vmm.xenstore.service import Xenstore

UNPLUG_S = 10
"""How long a front end may take to let its device go (libxl's time, too)."""


class State(IntEnum):
    """XenbusState*."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6


class FrontendError(Exception):
    """The front end has written something that cannot be; the text says what."""


class Guest(Protocol):
    """The domain that a front end is in."""

    @property
    def domid(self) -> Domid:
        """Its number."""
        ...

    @property
    def memory(self) -> AddressSpace:
        """Its address space."""
        ...

    @property
    def events(self) -> EventChannels:
        """Its event channels."""
        ...

    @property
    def grants(self) -> GrantTable:
        """Its grant table."""
        ...


class Frontend:
    """What the guest says of its end, and the ways to it.  `text` and `number` are for xenstore's thread."""

    def __init__(self, store: Store, path: str, guest: Guest) -> None:
        self._store = store
        self.path = path
        self._guest = guest
        self.pages = GrantedPages(guest.grants, guest.memory)

    def text(self, key: str) -> str:
        """A key's value; empty where there is none."""
        return (self._store.read(f"{self.path}/{key}") or b"").decode("ascii", "replace")

    def number(self, key: str, default: int | None = None) -> int:
        """A key's value as a 32-bit number; FrontendError where it is none, or missing without a default."""
        text = self.text(key)
        if not text and default is not None:
            return default
        if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > 0xFFFF_FFFF:
            raise FrontendError(f"{key} is {text!r}, where a number belongs")
        return int(text)

    def flag(self, key: str) -> bool:
        """Whether an optional feature is on."""
        return self.number(key, 0) != 0

    def bind(self, port: int, bell: Doorbell) -> "Bound":
        """Take the far end of a port that the guest has left open for it; FrontendError."""
        events = self._guest.events
        try:
            events.connect(Port(port), BACKEND_DOMID, bell)
        except XenError:
            raise FrontendError(f"event channel {port} is not open for a back end") from None
        return Bound(events, Port(port), bell)


class Bound:
    """The back end's end of an event channel.  `notify` and `close` from any thread."""

    def __init__(self, events: EventChannels, port: Port, bell: Doorbell) -> None:
        self._events = events
        self._port = port
        self._bell = bell

    def notify(self) -> None:
        """Tell the guest."""
        self._events.deliver(self._port)

    def close(self) -> None:
        """Let the port go; the guest may bind it anew."""
        self._events.disconnect(self._port, evtchn.Backend(self._bell))


class DeviceBackend(Protocol):
    """A device: what it is called, and how its data path begins and ends.  All but `release` in xenstore's thread."""

    kind: str
    """`vbd`, `vif` or `9pfs`."""
    handle: int
    """Its number among its kind."""
    fixed: frozenset[str]
    """Keys among `frontend_keys` that the guest may only read."""

    def toolstack_keys(self) -> dict[str, str]:
        """What a toolstack writes for the back end."""
        ...

    def frontend_keys(self) -> dict[str, str]:
        """What it writes for the front end."""
        ...

    def features(self) -> dict[str, str]:
        """What the back end offers before the front end answers."""
        ...

    def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
        """Begin to move data: what to tell the front end.  `failed` may be called later, from any thread.

        FrontendError, XenError or OSError; `disconnect` then undoes what had been done so far.
        """
        ...

    def disconnect(self, done: Callable[[], None]) -> None:
        """Stop moving data, undo all that `connect` did, and call `done`, from any thread."""
        ...

    def release(self) -> None:
        """Let go what the device is made of; it is disconnected."""
        ...

    def counters(self) -> dict[str, int]:
        """What it has moved since it connected; from any thread."""
        ...


class Ours(Enum):
    """Where a back end is: what its `state` says, and whether it moves data."""

    WAITING = "waiting for a front end"
    MOVING = "moving data"
    ASKED = "moving data, and asked to end"
    CLOSING = "closing"
    CLOSED = "closed"


class Action(Enum):
    """What a back end does when one end has changed."""

    NOTHING = "nothing"
    CONNECT = "begin to move data"
    DISCONNECT = "stop moving data, and look again when that has ended"
    SWITCH = "say so"
    REMOVE = "forget the device"


_OPEN = (State.INITIALISED, State.CONNECTED)
_SHUT = (State.UNKNOWN, State.INIT_WAIT, State.CLOSED)
_EITHER = (True, False)
Step = tuple[Action, State | None]

_ROWS: tuple[tuple[Ours, tuple[State, ...], tuple[bool, ...], Action, State | None], ...] = (
    # ours, theirs, online: action, what our `state` says from then on
    (Ours.WAITING, _OPEN, _EITHER, Action.CONNECT, State.CONNECTED),
    (Ours.WAITING, (State.CLOSING,), _EITHER, Action.SWITCH, State.CLOSING),
    (Ours.WAITING, _SHUT, (True,), Action.SWITCH, State.CLOSED),
    (Ours.WAITING, _SHUT, (False,), Action.REMOVE, State.CLOSED),
    (Ours.MOVING, (State.INITIALISING,), _EITHER, Action.DISCONNECT, None),  # it starts anew without having closed
    (Ours.MOVING, (State.CLOSING, *_SHUT), _EITHER, Action.DISCONNECT, State.CLOSING),
    (Ours.ASKED, (State.INITIALISING,), _EITHER, Action.DISCONNECT, None),
    (Ours.ASKED, (State.CLOSING, *_SHUT), _EITHER, Action.DISCONNECT, State.CLOSING),
    (Ours.CLOSING, (State.INITIALISING,), (True,), Action.SWITCH, State.INIT_WAIT),
    (Ours.CLOSING, _SHUT, (True,), Action.SWITCH, State.CLOSED),
    (Ours.CLOSING, _SHUT, (False,), Action.REMOVE, State.CLOSED),
    (Ours.CLOSED, (State.INITIALISING,), (True,), Action.SWITCH, State.INIT_WAIT),
    (Ours.CLOSED, (State.CLOSING,), _EITHER, Action.SWITCH, State.CLOSING),
    (Ours.CLOSED, _SHUT, (False,), Action.REMOVE, None),
)
TABLE: dict[tuple[Ours, State, bool], Step] = {
    (ours, theirs, online): (action, after)
    for ours, all_theirs, onlines, action, after in _ROWS
    for theirs in all_theirs
    for online in onlines
}
"""What is not in it changes nothing."""

_SAYS = {
    State.INIT_WAIT: Ours.WAITING,
    State.CONNECTED: Ours.MOVING,
    State.CLOSING: Ours.CLOSING,
    State.CLOSED: Ours.CLOSED,
}


class DeviceRecord(NamedTuple):
    """What a back end has to remember beside what xenstore holds."""

    kind: str
    handle: int
    ours: Ours
    online: bool


class XenbusDevice:
    """One back end and the two directories of it.  Owned by xenstore's thread, but for `ended`."""

    def __init__(self, xenstore: Xenstore, store: Store, guest: Guest, backend: DeviceBackend) -> None:
        self.backend = backend
        self.ended = threading.Event()
        """Set once it has been taken away."""
        self._xenstore = xenstore
        self._store = store
        self._domid = guest.domid
        name = f"{backend.kind}/{backend.handle}"
        self._frontend_path = f"/local/domain/{guest.domid}/device/{name}"
        self.path = f"/local/domain/{BACKEND_DOMID}/backend/{backend.kind}/{guest.domid}/{backend.handle}"
        self._libxl_path = f"/libxl/{guest.domid}/device/{name}"
        self._frontend = Frontend(store, self._frontend_path, guest)
        self._ours = Ours.WAITING
        self._ending = False
        """Whether the back end is about to stop moving data; nothing else is done meanwhile."""
        self._removed = False
        self._online = True

    @property
    def attached(self) -> bool:
        """Whether the back end moves data."""
        return self._ours in (Ours.MOVING, Ours.ASKED)

    def create(self) -> None:
        """Write what a toolstack writes, and offer the device."""
        store, ours, theirs = self._store, toolstacks(self._domid), guests_device(self._domid)
        keys = {
            "frontend": self._frontend_path,
            "frontend-id": str(self._domid),
            "online": "1",
            "state": str(int(State.INITIALISING)),
            **self.backend.toolstack_keys(),
        }
        frontend = {
            "backend": self.path,
            "backend-id": str(BACKEND_DOMID),
            "state": str(int(State.INITIALISING)),
            **self.backend.frontend_keys(),
        }
        store.write(self.path, "", ours)
        store.write(self._libxl_path, "")
        for path, values in ((self.path, keys), (self._libxl_path, keys | {"backend": self.path})):
            for key, value in values.items():
                store.write(f"{path}/{key}", value)
        for key, value in self.backend.features().items():
            store.write(f"{self.path}/{key}", value)
        store.write(f"{self.path}/hotplug-status", "connected")
        self._switch(State.INIT_WAIT)
        self._observe()
        store.write(self._frontend_path, "", theirs)  # last: from now on the guest sees a whole device
        for key, value in frontend.items():
            store.write(f"{self._frontend_path}/{key}", value, ours if key in self.backend.fixed else None)

    def _observe(self) -> None:
        for path in (f"{self.path}/online", f"{self.path}/state", f"{self._frontend_path}/state"):
            self._store.observe(path, self._changed)

    def _changed(self) -> None:
        self._xenstore.post(self._follow)

    def _frontend_state(self) -> State:
        text = self._frontend.text("state")
        return State(int(text)) if re.fullmatch("[1-6]", text) else State.UNKNOWN

    def _switch(self, state: State) -> None:
        self._ours = _SAYS[state]
        self._store.write(f"{self.path}/state", str(int(state)))

    def _follow(self) -> None:
        """Take the step that the front end's state, and the toolstack's wish, ask for."""
        if self._ending or self._removed:
            return
        self._heed_toolstack()
        action, after = TABLE.get((self._ours, self._frontend_state(), self._online), (Action.NOTHING, None))
        if action is Action.CONNECT:
            self._connect()
            return
        if action is Action.DISCONNECT:
            self._disconnect()
        if after is not None:
            self._switch(after)
        if action is Action.REMOVE:
            self.remove()

    def _heed_toolstack(self) -> None:
        """`online` 0 and `state` 5 in the back end's directory are how a toolstack unplugs a device."""
        self._online = self._store.read(f"{self.path}/online") == b"1"
        if self._store.read(f"{self.path}/state") == b"5":
            self._ours = Ours.ASKED if self.attached else Ours.CLOSING

    def _connect(self) -> None:
        try:
            keys = self.backend.connect(self._frontend, lambda why: self._xenstore.post(lambda: self._failed(why)))
        except (FrontendError, XenError, PyvmmError, OSError) as error:
            self._ours = Ours.MOVING  # in part
            self._failed(str(error))
            return
        for key, value in keys.items():
            self._store.write(f"{self.path}/{key}", value)
        self._switch(State.CONNECTED)

    def _failed(self, why: str) -> None:
        """The device ends; the guest sees it closing."""
        if self._removed:
            return  # what fails now has been taken away already
        log.get(__name__).warning(
            "device closed", kind=self.backend.kind, handle=self.backend.handle, domid=self._domid, reason=why
        )
        self._store.write(f"/local/domain/{BACKEND_DOMID}/error{self.path.removeprefix('/local/domain/0')}/error", why)
        if self.attached:
            self._disconnect()
        self._switch(State.CLOSING)

    def _disconnect(self) -> None:
        self._ours, self._ending = Ours.CLOSING, True
        self.backend.disconnect(lambda: self._xenstore.post(self._disconnected))

    def _disconnected(self) -> None:
        self._ending = False
        if self._removed:
            self._end()
        else:
            self._follow()

    def unplug(self) -> None:
        """Ask the front end to let the device go; `ended` is set when it has."""
        if not self._removed:
            self._store.write(f"{self.path}/online", "0")
            moving = self.attached
            self._switch(State.CLOSING)
            self._ours = Ours.ASKED if moving else Ours.CLOSING

    def remove(self) -> None:
        """Forget the device, whatever its front end does with it."""
        if self._removed:
            return
        self._removed = True
        for path in (f"{self.path}/online", f"{self.path}/state", f"{self._frontend_path}/state"):
            self._store.forget(path)
        for path in (self.path, self._frontend_path, self._libxl_path):
            self._store.remove(path)
        if self.attached:
            self._disconnect()
        elif not self._ending:
            self._end()

    def _end(self) -> None:
        self.backend.release()
        self.ended.set()

    def record(self) -> DeviceRecord:
        """What it has to remember, as data; its keys are the tree's."""
        return DeviceRecord(self.backend.kind, self.backend.handle, self._ours, self._online)

    def restore(self, record: DeviceRecord) -> None:
        """Go on where another was, in a tree that holds its keys: a back end that moved data reads them again."""
        self._online, self._ours = record.online, record.ours
        self._observe()
        if record.ours in (Ours.MOVING, Ours.ASKED):
            self._connect()
            if self._ours is Ours.MOVING:
                self._ours = record.ours


class XenbusAttachment:
    """One device, as who attaches and detaches it sees it.  From any thread but xenstore's."""

    def __init__(self, xenstore: Xenstore, device: XenbusDevice) -> None:
        self._xenstore = xenstore
        self.device = device

    @property
    def gone(self) -> bool:
        """Whether it has been taken away."""
        return self.device.ended.is_set()

    def detach(self, *, force: bool) -> bool:
        """Take it away; False where a front end that uses it did not let it go in time, unless by force."""
        self._xenstore.run(lambda _: self.device.unplug())
        if self.device.ended.wait(0 if force else UNPLUG_S):
            return True
        if force or not self.device.attached:
            self.remove()
            return True
        return False

    def remove(self) -> None:
        """Take it away at once."""
        self._xenstore.run(lambda _: self.device.remove())
        self.device.ended.wait()

    def counters(self) -> dict[str, int]:
        """What it has moved."""
        return self.device.backend.counters()


class Xenbus:
    """The bus of one domain.  `_lock` guards its list; from any thread but xenstore's."""

    kind = Bus.XENBUS

    def __init__(self, xenstore: Xenstore, guest: Guest) -> None:
        self.xenstore = xenstore
        self._guest = guest
        self._lock = threading.Lock()
        self._attached: list[XenbusAttachment] = []

    def attach(self, backend: DeviceBackend) -> XenbusAttachment:
        """Show the domain a device, at any time; a back end that cannot be shown is released."""

        def create(store: Store) -> XenbusDevice:
            device = XenbusDevice(self.xenstore, store, self._guest, backend)
            device.create()
            return device

        try:
            attachment = XenbusAttachment(self.xenstore, self.xenstore.run(create))
        except BaseException:
            backend.release()
            raise
        with self._lock:
            self._attached = [*(known for known in self._attached if not known.gone), attachment]
        return attachment

    def close(self) -> None:
        """Take all devices away; the guest does not run any more."""
        with self._lock:
            attached, self._attached = self._attached, []
        for attachment in attached:
            attachment.remove()
