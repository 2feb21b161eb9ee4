"""The devices of one domain: one way to attach and detach, at its start and later, whatever the bus."""

import threading
from typing import Any, Protocol

from vmm.devices.kind import Bus, Spec
from vmm.devices.kinds import KINDS, kind_of
from vmm.errors import PyvmmError, UsageError

HANDLES = 1024
"""Numbers that are looked through for a free one."""


class Attachment(Protocol):
    """A device on its bus."""

    @property
    def gone(self) -> bool:
        """Whether it has been taken away."""
        ...

    def detach(self, *, force: bool) -> bool:
        """Take it away; False where a guest that uses it did not let it go in time, unless by force."""
        ...

    def counters(self) -> dict[str, int]:
        """What it has moved."""
        ...


class DeviceBus(Protocol):
    """What a domain's devices stand on."""

    kind: Bus

    def attach(self, device: Any) -> Attachment:
        """Show the guest a device, made for this bus.  PyvmmError, and then the device is released."""
        ...

    def close(self) -> None:
        """The guest does not run any more: release all devices."""
        ...


class DeviceManager:
    """`_lock` guards which devices there are; from any thread but xenstore's and the domain's own."""

    def __init__(self, bus: DeviceBus, vcpus: int) -> None:
        self._bus = bus
        self._vcpus = vcpus
        self._lock = threading.Lock()
        self._devices: dict[tuple[str, int], Attachment] = {}

    def attach(self, spec: Spec) -> str:
        """Give the domain a device: what a user calls it.  UsageError, PyvmmError."""
        kind = kind_of(spec)
        opener = kind.open.get(self._bus.kind)
        if opener is None:
            raise UsageError(f"a {kind.noun} cannot stand on {self._bus.kind.value}, which is all that this guest has")
        with self._lock:
            self._forget_gone()
            handle = kind.handle(spec)
            if handle is None:
                handle = next(n for n in range(HANDLES) if (kind.name, n) not in self._devices)
            if (kind.name, handle) in self._devices:
                raise UsageError(f"the guest has a {kind.noun} {kind.named(handle)} already")
            self._devices[kind.name, handle] = self._bus.attach(opener(spec, handle, self._vcpus))
        return kind.named(handle)

    def attach_text(self, name: str, text: str) -> str:
        """Give it a device from what is written behind the option of that name: what a user calls it.  PyvmmError."""
        kind = KINDS[name].load()
        with self._lock:
            self._forget_gone()
            used = {handle for other, handle in self._devices if other == name}
        spec = kind.parse(text, 0)
        for index in range(1, HANDLES):  # the first position whose number is free: xvdb where there is an xvda
            other = kind.parse(text, index)
            if kind.handle(spec) not in used or kind.handle(other) == kind.handle(spec):
                break
            spec = other
        return self.attach(spec)

    def attach_backend(self, backend: Any) -> None:
        """Give it one of pyvmm's own making, for which there is no row: a channel."""
        self._devices[backend.kind, backend.handle] = self._bus.attach(backend)

    def detach(self, name: str, word: str, *, force: bool = False) -> None:
        """Take away the device of a kind that a user calls so.  UsageError, PyvmmError."""
        kind = KINDS[name].load()
        handle = kind.handle_named(word)
        with self._lock:
            self._forget_gone()
            found = self._devices.get((name, handle))
        what = f"{kind.noun} {word}"
        if found is None:
            raise UsageError(f"the guest has no {what}")
        if not found.detach(force=force):
            raise PyvmmError(f"the guest still uses its {what} and has not let it go; --force takes it away all the same")

    def find(self, name: str, handle: int) -> Attachment | None:
        """The device of that kind and number."""
        with self._lock:
            self._forget_gone()
            return self._devices.get((name, handle))

    def _forget_gone(self) -> None:
        self._devices = {key: device for key, device in self._devices.items() if not device.gone}

    def counters(self) -> dict[str, dict[str, int]]:
        """What each device has moved, by its name in xenstore."""
        with self._lock:
            devices = dict(self._devices)
        return {f"{_xenbus(name)}/{handle}": device.counters() for (name, handle), device in devices.items()}

    def close(self) -> None:
        """The guest does not run any more: take all devices away."""
        self._bus.close()


def _xenbus(name: str) -> str:
    return KINDS[name].load().xenbus if name in KINDS else name
