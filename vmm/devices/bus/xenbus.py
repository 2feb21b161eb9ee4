"""Xenbus: a device's back end and its front end find each other in xenstore and follow each other's state.

The state machine of every device lives here and runs in xenstore's thread; a back end's data is moved in threads of its
own.  Source: xen/include/public/io/xenbus.h.
"""

import re
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from vmm.devices.ring.granted import BACKEND_DOMID, GrantedPages
from vmm.host import log
from vmm.host.eventloop import Doorbell
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import AddressSpace
from vmm.xenabi.values import Domid, Port, XenError
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
    def domid(self) -> Domid: ...
    @property
    def memory(self) -> AddressSpace: ...
    @property
    def events(self) -> EventChannels: ...
    @property
    def grants(self) -> GrantTable: ...


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
            events.connect(Port(port), BACKEND_DOMID, Port(0), bell.ring, bell.fd)
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
        self._events.disconnect(self._port, self._bell.ring)


class Backend(Protocol):
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


class XenbusDevice:
    """One back end and the two directories of it.  Owned by xenstore's thread, but for `gone`."""

    def __init__(self, xenstore: Xenstore, store: Store, guest: Guest, backend: Backend) -> None:
        self.backend = backend
        self.gone = threading.Event()
        self._xenstore = xenstore
        self._store = store
        self._domid = guest.domid
        name = f"{backend.kind}/{backend.handle}"
        self._frontend_path = f"/local/domain/{guest.domid}/device/{name}"
        self.path = f"/local/domain/{BACKEND_DOMID}/backend/{backend.kind}/{guest.domid}/{backend.handle}"
        self._libxl_path = f"/libxl/{guest.domid}/device/{name}"
        self._frontend = Frontend(store, self._frontend_path, guest)
        self._state = State.INITIALISING
        self.attached = False
        """Whether the back end moves data."""
        self._detaching = False
        self._removed = False
        self._online = True

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
        store.observe(f"{self.path}/online", self._changed)
        store.observe(f"{self.path}/state", self._changed)
        store.observe(f"{self._frontend_path}/state", self._changed)
        store.write(self._frontend_path, "", theirs)  # last: from now on the guest sees a whole device
        for key, value in frontend.items():
            store.write(f"{self._frontend_path}/{key}", value, ours if key in self.backend.fixed else None)

    def _changed(self) -> None:
        self._xenstore.post(self._follow)

    def _frontend_state(self) -> State:
        text = self._frontend.text("state")
        return State(int(text)) if re.fullmatch("[1-6]", text) else State.UNKNOWN

    def _switch(self, state: State) -> None:
        self._state = state
        self._store.write(f"{self.path}/state", str(int(state)))

    def _follow(self) -> None:
        """Take the step that the front end's state, and the toolstack's wish, ask for."""
        if self._detaching or self._removed:
            return  # looked at again when the back end has stopped
        self._heed_toolstack()
        theirs = self._frontend_state()
        if theirs in (State.INITIALISED, State.CONNECTED):
            if self._state is State.INIT_WAIT:
                self._connect()
        elif theirs is State.INITIALISING:
            if self.attached:
                self._detach()  # a front end that starts anew without having closed
            elif self._state is not State.INIT_WAIT and self._online:
                self._switch(State.INIT_WAIT)
        elif self.attached:
            self._detach()
            self._switch(State.CLOSING)
        elif theirs is State.CLOSING:
            if self._state is not State.CLOSING:
                self._switch(State.CLOSING)
        else:
            if self._state is not State.CLOSED:
                self._switch(State.CLOSED)
            if not self._online:
                self.remove()

    def _heed_toolstack(self) -> None:
        """`online` 0 and `state` 5 in the back end's directory are how a toolstack unplugs a device."""
        online = self._store.read(f"{self.path}/online")
        self._online = online == b"1"
        if self._store.read(f"{self.path}/state") == b"5":
            self._state = State.CLOSING

    def _connect(self) -> None:
        try:
            keys = self.backend.connect(self._frontend, lambda why: self._xenstore.post(lambda: self._failed(why)))
        except (FrontendError, XenError, OSError) as error:
            self.attached = True  # in part
            self._failed(str(error))
            return
        self.attached = True
        for key, value in keys.items():
            self._store.write(f"{self.path}/{key}", value)
        self._switch(State.CONNECTED)

    def _failed(self, why: str) -> None:
        """The device ends; the guest sees it closing."""
        log.get(__name__).warning(
            "device closed", kind=self.backend.kind, handle=self.backend.handle, domid=self._domid, reason=why
        )
        self._store.write(f"/local/domain/{BACKEND_DOMID}/error{self.path.removeprefix('/local/domain/0')}/error", why)
        if self.attached:
            self._detach()
        self._switch(State.CLOSING)

    def _detach(self) -> None:
        self.attached, self._detaching = False, True
        self.backend.disconnect(lambda: self._xenstore.post(self._detached))

    def _detached(self) -> None:
        self._detaching = False
        if self._removed:
            self._end()
        else:
            self._follow()

    def unplug(self) -> None:
        """Ask the front end to let the device go; `gone` is set when it has."""
        self._store.write(f"{self.path}/online", "0")
        self._switch(State.CLOSING)

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
            self._detach()
        elif not self._detaching:
            self._end()

    def _end(self) -> None:
        self.backend.release()
        self.gone.set()


class Xenbus:
    """All devices of one domain.  From any thread but xenstore's."""

    def __init__(self, xenstore: Xenstore, guest: Guest) -> None:
        self.xenstore = xenstore
        self._guest = guest
        self._lock = threading.Lock()
        self._devices: list[XenbusDevice] = []

    def attach(self, backend: Backend) -> XenbusDevice:
        """Give the domain a device, at any time."""

        def create(store: Store) -> XenbusDevice:
            device = XenbusDevice(self.xenstore, store, self._guest, backend)
            device.create()
            return device

        device = self.xenstore.run(create)
        with self._lock:
            self._devices.append(device)
        return device

    def find(self, kind: str, handle: int) -> XenbusDevice | None:
        """The device of that kind and number."""
        with self._lock:
            self._devices = [device for device in self._devices if not device.gone.is_set()]
            return next((d for d in self._devices if (d.backend.kind, d.backend.handle) == (kind, handle)), None)

    def counters(self) -> dict[str, dict[str, int]]:
        """What each device has moved, by its name."""
        with self._lock:
            return {f"{d.backend.kind}/{d.backend.handle}": d.backend.counters() for d in self._devices}

    def detach(self, device: XenbusDevice, *, force: bool = False) -> bool:
        """Take a device away again; False where a front end that uses it did not let it go in time, unless by force."""
        self.xenstore.run(lambda _: device.unplug())
        if device.gone.wait(0 if force else UNPLUG_S):
            return True
        if force or not device.attached:
            self._remove(device)
            return True
        return False

    def _remove(self, device: XenbusDevice) -> None:
        self.xenstore.run(lambda _: device.remove())
        device.gone.wait()

    def close(self) -> None:
        """Take all devices away; the guest does not run any more."""
        with self._lock:
            devices, self._devices = self._devices, []
        for device in devices:
            self._remove(device)
