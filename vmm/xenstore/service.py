"""Xenstore's thread: the one that owns the tree, the guests' rings, and what the toolstack asks of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmm.host.errand import Errand
from vmm.host.eventloop import Doorbell, EventLoop
from vmm.xenabi.interfaces import SharedBytes
from vmm.xenabi.values import Domid
from vmm.xenstore.layout import DomainFacts, describe_dom0, describe_domain, forget_domain
from vmm.xenstore.ring import StoreRing
from vmm.xenstore.server import Connection, Store
from vmm.xenstore.tree import DOM0

if TYPE_CHECKING:
    from vmm.xenstore.sockets import SocketServer

Result = TypeVar("Result")


class Xenstore:
    """The store of one hypervisor.  Its methods may be called from any thread but its own; `close` once."""

    def __init__(self) -> None:
        self._store = Store()
        self._loop = EventLoop("xenstore")
        self._clients: dict[Domid, tuple[Connection, StoreRing, Doorbell]] = {}
        self._server: SocketServer | None = None
        describe_dom0(self._store)
        self._loop.start()

    def post(self, action: Callable[[], None]) -> None:
        """Do something in the store's thread, soon."""
        self._loop.post(action)

    def run(self, action: Callable[[Store], Result]) -> Result:
        """Do something with the store in its own thread, and wait for it."""
        errand = Errand(lambda: action(self._store))
        self._loop.post(errand.run)
        errand.done()
        return errand.result()

    def introduce(self, facts: DomainFacts, page: SharedBytes, notify_guest: Callable[[], None]) -> Doorbell:
        """Describe a domain and serve its ring: the bell for its guest."""

        def serve() -> None:
            found = self._clients.get(facts.domid)
            if found is not None and found[1].on_event():
                doorbell.ring()

        doorbell = self._loop.doorbell(serve)

        def connect(store: Store) -> None:
            if facts.domid != DOM0:
                describe_domain(store, facts)
            client = store.connect(facts.domid, doorbell.ring)
            self._clients[facts.domid] = client, StoreRing(page, client, notify_guest), doorbell
            store.introduce(facts.domid)

        self._loop.post(lambda: connect(self._store))  # before whatever the guest may ring for
        return doorbell

    def listen(self, path: Path) -> None:
        """Serve tools on this host, as dom0, on a Unix socket.  PyvmmError."""
        from vmm.xenstore.sockets import SocketServer  # sockets are not for guests that nobody looks into

        self._server = SocketServer(self._loop, path)
        self.run(self._server.start)

    def release(self, domid: Domid) -> None:
        """The domain is gone; its memory is still there."""

        def disconnect(store: Store) -> None:
            found = self._clients.pop(domid, None)
            if found is not None:
                store.disconnect(found[0])
                found[2].close()
                if domid != DOM0:
                    forget_domain(store, domid)
                store.release(domid)

        self.run(disconnect)

    def close(self) -> None:
        """End the thread; the socket's file goes."""
        server, self._server = self._server, None
        if server is not None:
            self.run(server.close)
        self._loop.stop()
