"""The 9pfs back end: what it offers in xenstore, its rings, and its server.  Source: xen/docs/misc/9pfs.pandoc."""

from collections.abc import Callable

from vmm.devices.bus.xenbus import Frontend, FrontendError
from vmm.devices.counters import Totals
from vmm.devices.ninep.mover import Mover
from vmm.devices.ninep.ring import MAX_ORDER, ShareRing
from vmm.devices.ninep.server import find_server, start_server
from vmm.devices.ninep.spec import Share
from vmm.errors import PyvmmError
from vmm.xenabi.byte_ring import RingBroken
from vmm.xenabi.values import XenError

MAX_RINGS = 8


class ShareBackend:
    """One shared folder.  Its methods belong to xenstore's thread; its messages are moved by another."""

    kind = "9pfs"
    fixed = frozenset[str]()

    def __init__(self, share: Share, handle: int) -> None:
        """PyvmmError where the host has no server."""
        find_server()
        self.handle = handle
        self._share = share
        self._mover: Mover | None = None
        self._totals = Totals()

    def toolstack_keys(self) -> dict[str, str]:
        """As libxl writes them."""
        return {"path": str(self._share.path), "security_model": "none"}

    def frontend_keys(self) -> dict[str, str]:
        """As libxl writes them."""
        return {"tag": self._share.tag}

    def features(self) -> dict[str, str]:
        """What is known before the front end is there."""
        return {"versions": "1", "max-rings": str(MAX_RINGS), "max-ring-page-order": str(MAX_ORDER)}

    def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
        """Start a server for the guest and serve its rings.  FrontendError, OSError."""
        if frontend.text("version") != "1":
            raise FrontendError(f"version is {frontend.text('version')!r}, not 1")
        count = frontend.number("num-rings")
        if not 1 <= count <= MAX_RINGS:
            raise FrontendError(f"num-rings {count} is not 1 to {MAX_RINGS}")
        rings: list[ShareRing] = []
        try:
            for number in range(count):
                rings.append(ShareRing(frontend.pages, frontend.number(f"ring-ref{number}")))
        except (XenError, RingBroken, FrontendError) as error:
            for ring in rings:
                ring.close()
            reason = "does not name pages granted to domain 0" if isinstance(error, XenError) else str(error)
            raise FrontendError(f"ring-ref{len(rings)}: {reason}") from None
        try:
            server = start_server(self._share.path, read_only=self._share.read_only)
        except (PyvmmError, OSError):
            for ring in rings:
                ring.close()
            raise
        mover = Mover(f"9pfs-{self._share.tag}", server, rings, bytes(self._share.path), failed)
        self._mover = mover
        for number in range(count):
            mover.bind(number, frontend.bind(frontend.number(f"event-channel-{number}"), mover.bell))
        mover.start()
        return {}

    def disconnect(self, done: Callable[[], None]) -> None:
        """End the server."""
        mover, self._mover = self._mover, None
        if mover is None:
            done()
        else:
            self._totals.end([mover])
            mover.stop(done)

    def counters(self) -> dict[str, int]:
        """Messages that its server has answered."""
        mover = self._mover
        return self._totals.add_up([mover] if mover is not None else [])

    def release(self) -> None:
        """Nothing is left."""
