"""Xenstore's Unix socket: where tools on the host are its clients, as dom0's are on Xen."""

import socket
from collections.abc import Callable
from pathlib import Path

from vmm.host.eventloop import EventLoop
from vmm.host.unixsocket import accept, listener
from vmm.xenstore.server import Connection, Store
from vmm.xenstore.tree import DOM0
from vmm.xenstore.wire import Broken, Reader

READ_BYTES = 64 << 10
BACKLOG = 16


class SocketServer:
    """The listening end.  After it is made, it belongs to the loop's thread."""

    def __init__(self, loop: EventLoop, path: Path) -> None:
        self._loop = loop
        self._path = path
        self._socket = listener(path, BACKLOG)
        self._socket.setblocking(False)
        self._clients: set[SocketClient] = set()

    def start(self, store: Store) -> None:
        """Take clients."""
        self._loop.watch(self._socket.fileno(), lambda: self._accept(store))

    def _accept(self, store: Store) -> None:
        try:
            accepted = accept(self._socket)
        except OSError:
            return  # it has gone again
        self._clients.add(SocketClient(self._loop, accepted, store, self._clients.discard))

    def close(self, store: Store) -> None:
        """Let the clients go and remove the socket's file."""
        self._loop.unwatch(self._socket.fileno())
        for client in list(self._clients):
            client.close()
        self._socket.close()
        self._path.unlink(missing_ok=True)


class SocketClient:
    """One connected tool.  What it does not take waits, and while much waits it is not listened to."""

    def __init__(
        self, loop: EventLoop, peer: socket.socket, store: Store, on_close: "Callable[[SocketClient], None]"
    ) -> None:
        self._loop = loop
        self._peer = peer
        self._store = store
        self._on_close = on_close
        self._reader = Reader()
        self._sending = memoryview(b"")
        peer.setblocking(False)
        self._connection: Connection = store.connect(DOM0, lambda: loop.wait_for_room(peer.fileno(), True))
        loop.watch(peer.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            self._send()
            if not self._sending:
                self._receive()
                self._send()
        except (OSError, Broken):
            self.close()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise Broken
        for message in self._reader.feed(data):
            self._connection.handle(message)

    def _send(self) -> None:
        while True:
            if not self._sending:
                self._sending = memoryview(self._connection.take())
            if not self._sending:
                self._loop.wait_for_room(self._peer.fileno(), False)
                return
            try:
                self._sending = self._sending[self._peer.send(self._sending) :]
            except BlockingIOError:
                self._loop.wait_for_room(self._peer.fileno(), True)
                return

    def close(self) -> None:
        """Forget the client."""
        self._store.disconnect(self._connection)
        self._loop.unwatch(self._peer.fileno())
        self._peer.close()
        self._on_close(self)
