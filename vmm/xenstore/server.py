"""Xenstore's clients: their requests, transactions and watches, over one tree.

Everything here belongs to one thread.  A `Connection` takes messages and leaves its answers and events in `outgoing`;
whoever moves the bytes (a guest's ring, a socket) empties that and is told through `on_outgoing`.
"""

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmm.xenabi.constants import DOMID_SELF
from vmm.xenabi.values import Domid
from vmm.xenstore.tree import (
    DOM0,
    Change,
    Node,
    Permission,
    Permissions,
    StoreError,
    Tree,
    View,
    check_path,
    parent_of,
)
from vmm.xenstore.wire import MAX_PAYLOAD_BYTES, Kind, Message

MAX_RELATIVE_BYTES = 2048
MAX_TOKEN_BYTES = 256
MAX_BACKLOG = 4096
"""Messages that wait for a client that does not read, before it misses events."""
SPECIAL = ("@introduceDomain", "@releaseDomain")
_OK = b"OK\0"


class Watch(NamedTuple):
    """A client wants to know what happens at `path` and below; `prefix` is left out of what it is told."""

    path: str
    token: str
    prefix: str

    def event(self, path: str) -> bytes:
        """The payload of an event for a path."""
        told = path[len(self.prefix) + 1 :] if self.prefix and path.startswith(self.prefix + "/") else path
        return f"{told}\0{self.token}\0".encode()


class Store:
    """The tree and everybody connected to it."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.connections: list[Connection] = []
        self.introduced: set[Domid] = {DOM0}
        self._observers: dict[str, Callable[[], None]] = {}
        self.watcher: Callable[[Domid, Message, Message], None] | None = None
        """Is shown every request with its answer."""

    def connect(self, domid: Domid, on_outgoing: Callable[[], None]) -> "Connection":
        """A new client; `on_outgoing` is called when it has something to be told."""
        made = Connection(self, domid, on_outgoing)
        self.connections.append(made)
        return made

    def disconnect(self, connection: "Connection") -> None:
        """Forget a client, its watches and its transactions."""
        if connection in self.connections:
            self.connections.remove(connection)

    def introduce(self, domid: Domid) -> None:
        """A domain is there; those who watch @introduceDomain hear of it."""
        self.introduced.add(domid)
        self._announce("@introduceDomain")

    def release(self, domid: Domid) -> None:
        """A domain is gone; those who watch @releaseDomain hear of it."""
        self.introduced.discard(domid)
        self._announce("@releaseDomain")

    def _announce(self, path: str) -> None:
        self.fire([Change(path, True, Node(b"", (Permission(DOM0, False, False),)))])

    def fire(self, changes: list[Change]) -> None:
        """Tell everybody who watches and may read what has changed."""
        for connection in self.connections:
            connection.tell(changes)
        for change in changes:
            if change.path in self._observers:
                self._observers[change.path]()

    def observe(self, path: str, callback: Callable[[], None]) -> None:
        """Call back on each change of just this node; within the change, so that it must change nothing itself."""
        self._observers[path] = callback

    def forget(self, path: str) -> None:
        """Observe a node no more."""
        self._observers.pop(path, None)

    def commit(self, view: View) -> None:
        """Let the tree have a view's changes, and tell of them."""
        view.commit()
        self.fire(view.changes)

    # ------------------------------------------------------------------- for the toolstack itself

    def write(self, path: str, value: str, permissions: Permissions | None = None) -> None:
        """As dom0: set a node, and who may do what with it."""
        view = self.tree.view()
        view.write(path, value.encode(), DOM0)
        if permissions is not None:
            view.set_permissions(path, permissions, DOM0)
        self.commit(view)

    def read(self, path: str) -> bytes | None:
        """As dom0: a node's value, None where there is no such node."""
        node = self.tree.nodes.get(path)
        return None if node is None else node.value

    def remove(self, path: str) -> None:
        """As dom0: remove a node and all below it."""
        view = self.tree.view()
        try:
            view.remove(path, DOM0)
        except StoreError:
            return
        self.commit(view)


class Connection:
    """One client."""

    def __init__(self, store: Store, domid: Domid, on_outgoing: Callable[[], None]) -> None:
        self.store = store
        self.domid = domid
        self.home = f"/local/domain/{domid}"
        self._outgoing: OrderedDict[tuple[int, bytes], Message] = OrderedDict()
        self._sent = 0
        self._on_outgoing = on_outgoing
        self._watches: list[Watch] = []
        self._by_path: dict[str, list[Watch]] = {}
        """The same by what they watch, so that a change finds those that it concerns."""
        self._transactions: dict[int, View] = {}
        self._next_transaction = 1

    # ------------------------------------------------------------------------------------ output

    @property
    def backlog(self) -> int:
        """Messages that wait to be taken."""
        return len(self._outgoing)

    def take(self) -> bytes:
        """The next message's bytes; empty where there is none."""
        if not self._outgoing:
            return b""
        return self._outgoing.popitem(last=False)[1].pack()

    def _send(self, message: Message) -> None:
        # An event that still waits to be read needs no second one; an answer is always one of its own.
        self._sent += 1
        is_event = message.kind == Kind.WATCH_EVENT
        key = (0, message.payload) if is_event else (self._sent, b"")
        if key not in self._outgoing and not (is_event and len(self._outgoing) >= MAX_BACKLOG):
            self._outgoing[key] = message
            self._on_outgoing()

    def tell(self, changes: list[Change]) -> None:
        """Send an event for each watch that a change concerns, if this client may read the node."""
        if not self._by_path:
            return
        for change in changes:
            for path in (change.path,) if change.exact else _upwards(change.path):
                for watch in self._by_path.get(path, ()):
                    if change.node.allows(self.domid, write=False):
                        self._send(Message(Kind.WATCH_EVENT, 0, 0, watch.event(change.path)))

    # ------------------------------------------------------------------------------------- input

    def handle(self, message: Message) -> None:
        """Carry out a request; the answer goes out."""
        handler = _HANDLERS.get(message.kind)
        try:
            if handler is None:
                raise StoreError(errno.ENOSYS)
            reply = handler(self, message)
            if len(reply) > MAX_PAYLOAD_BYTES:
                raise StoreError(errno.E2BIG)
        except StoreError as error:
            name = f"{errno.errorcode[error.code]}\0".encode()
            answer = Message(Kind.ERROR, message.request_id, message.transaction_id, name)
        else:
            answer = Message(message.kind, message.request_id, message.transaction_id, reply)
        self._send(answer)
        if answer.kind == Kind.WATCH:
            self._first_event(message)
        if self.store.watcher is not None:
            self.store.watcher(self.domid, message, answer)

    def _first_event(self, message: Message) -> None:
        path, token = _strings(message, 2)
        self._send(Message(Kind.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode()))

    def absolute(self, path: str) -> str:
        """A path as the client writes it, made absolute; StoreError(EINVAL)."""
        if path.startswith("/"):
            return check_path(path)
        if len(path) > MAX_RELATIVE_BYTES:
            raise StoreError(errno.EINVAL)
        return check_path(f"{self.home}/{path}")

    def _view(self, message: Message) -> View:
        if message.transaction_id:
            found = self._transactions.get(message.transaction_id)
            if found is None:
                raise StoreError(errno.ENOENT)
            return found
        return self.store.tree.view()

    def _done(self, message: Message, view: View) -> bytes:
        if not message.transaction_id:
            self.store.commit(view)
        return _OK

    # ---------------------------------------------------------------------------------- requests

    def _read(self, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        return self._view(message).get(self.absolute(path), self.domid).value

    def _directory(self, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        return _names(self._view(message).get(self.absolute(path), self.domid))

    def _directory_part(self, message: Message) -> bytes:
        path, offset_text = _strings(message, 2)
        node = self._view(message).get(self.absolute(path), self.domid)
        names = _names(node)
        if not offset_text.isdecimal() or int(offset_text) > len(names):
            raise StoreError(errno.EINVAL)
        rest = names[int(offset_text) :]
        head = f"{node.generation}\0".encode()
        room = MAX_PAYLOAD_BYTES - len(head) - 1
        if len(rest) <= room:
            return head + rest + b"\0"
        return head + rest[: rest.rfind(b"\0", 0, room) + 1]

    def _get_perms(self, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        node = self._view(message).get(self.absolute(path), self.domid)
        return "".join(f"{entry}\0" for entry in node.permissions).encode()

    def _set_perms(self, message: Message) -> bytes:
        path, *texts = _strings(message, None)
        if not texts:
            raise StoreError(errno.EINVAL)
        view = self._view(message)
        view.set_permissions(self.absolute(path), tuple(map(Permission.parse, texts)), self.domid)
        return self._done(message, view)

    def _write(self, message: Message) -> bytes:
        raw, separator, value = message.payload.partition(b"\0")
        if not separator:
            raise StoreError(errno.EINVAL)
        view = self._view(message)
        view.write(self.absolute(_text(raw)), value, self.domid)
        return self._done(message, view)

    def _mkdir(self, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        view = self._view(message)
        view.make(self.absolute(path), self.domid)
        return self._done(message, view)

    def _rm(self, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        view = self._view(message)
        view.remove(self.absolute(path), self.domid)
        return self._done(message, view)

    def _watch(self, message: Message) -> bytes:
        path, token = _strings(message, 2)
        if len(token) > MAX_TOKEN_BYTES:
            raise StoreError(errno.EINVAL)
        if path.startswith("@"):
            if path not in SPECIAL:
                raise StoreError(errno.EINVAL)
            if self.domid != DOM0:
                raise StoreError(errno.EACCES)
            watch = Watch(path, token, "")
        else:
            watch = Watch(self.absolute(path), token, "" if path.startswith("/") else self.home)
        if watch in self._watches:
            raise StoreError(errno.EEXIST)
        if self.domid != DOM0 and len(self._watches) >= self.store.tree.quota.watches:
            raise StoreError(errno.E2BIG)
        self._watches.append(watch)
        self._by_path.setdefault(watch.path, []).append(watch)
        return _OK

    def _unwatch(self, message: Message) -> bytes:
        path, token = _strings(message, 2)
        wanted = path if path.startswith("@") else self.absolute(path)
        for watch in self._watches:
            if (watch.path, watch.token) == (wanted, token):
                self._watches.remove(watch)
                self._by_path[watch.path].remove(watch)
                return _OK
        raise StoreError(errno.ENOENT)

    def _reset_watches(self, message: Message) -> bytes:
        self.forget()
        return _OK

    def record(self) -> tuple[Watch, ...]:
        """Its watches as data; a transaction that it has begun is not, and will conflict."""
        return tuple(self._watches)

    def restore(self, record: tuple[Watch, ...]) -> None:
        """Have another client's watches; they fire when something changes."""
        self.forget()
        for watch in record:
            self._watches.append(watch)
            self._by_path.setdefault(watch.path, []).append(watch)

    def forget(self) -> None:
        """Drop all watches and transactions."""
        self._watches.clear()
        self._by_path.clear()
        self._transactions.clear()

    def _transaction_start(self, message: Message) -> bytes:
        if message.transaction_id:
            raise StoreError(errno.EBUSY)
        if self.domid != DOM0 and len(self._transactions) >= self.store.tree.quota.transactions:
            raise StoreError(errno.ENOSPC)
        while self._next_transaction in self._transactions or not self._next_transaction:
            self._next_transaction = (self._next_transaction + 1) & 0xFFFF_FFFF
        number = self._next_transaction
        self._next_transaction = (number + 1) & 0xFFFF_FFFF
        limit = None if self.domid == DOM0 else self.store.tree.quota.transaction_nodes
        self._transactions[number] = self.store.tree.view(limit)
        return f"{number}\0".encode()

    def _transaction_end(self, message: Message) -> bytes:
        (how,) = _strings(message, 1)
        if how not in ("T", "F"):
            raise StoreError(errno.EINVAL)
        view = self._transactions.pop(message.transaction_id, None)
        if view is None:
            raise StoreError(errno.ENOENT)
        if how == "T":
            if view.conflicts():
                raise StoreError(errno.EAGAIN)
            self.store.commit(view)
        return _OK

    def _get_domain_path(self, message: Message) -> bytes:
        return f"/local/domain/{_domid(message)}\0".encode()

    def _is_domain_introduced(self, message: Message) -> bytes:
        domid = _domid(message)
        return b"T\0" if domid in self.store.introduced or domid == DOMID_SELF else b"F\0"

    def _privileged(self, message: Message) -> bytes:
        raise StoreError(errno.EACCES if self.domid != DOM0 else errno.ENOSYS)


def _upwards(path: str) -> Iterator[str]:
    """A path, and those above it up to the root."""
    yield path
    while path != "/":
        path = parent_of(path)
        yield path


def _text(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise StoreError(errno.EINVAL) from None


def _strings(message: Message, count: int | None) -> list[str]:
    """The payload's strings, each ended by a zero; StoreError(EINVAL) where they are not so many."""
    if not message.payload.endswith(b"\0"):
        raise StoreError(errno.EINVAL)
    found = [_text(raw) for raw in message.payload[:-1].split(b"\0")]
    if count is not None and len(found) != count:
        raise StoreError(errno.EINVAL)
    return found


def _domid(message: Message) -> int:
    (text,) = _strings(message, 1)
    if not text.isdecimal() or len(text) > 5 or int(text) > 0xFFFF:
        raise StoreError(errno.EINVAL)
    return int(text)


def _names(node: Node) -> bytes:
    return "".join(f"{name}\0" for name in node.children).encode()


_HANDLERS: dict[int, Callable[[Connection, Message], bytes]] = {
    Kind.CONTROL: Connection._privileged,
    Kind.DIRECTORY: Connection._directory,
    Kind.READ: Connection._read,
    Kind.GET_PERMS: Connection._get_perms,
    Kind.WATCH: Connection._watch,
    Kind.UNWATCH: Connection._unwatch,
    Kind.TRANSACTION_START: Connection._transaction_start,
    Kind.TRANSACTION_END: Connection._transaction_end,
    Kind.INTRODUCE: Connection._privileged,
    Kind.RELEASE: Connection._privileged,
    Kind.GET_DOMAIN_PATH: Connection._get_domain_path,
    Kind.WRITE: Connection._write,
    Kind.MKDIR: Connection._mkdir,
    Kind.RM: Connection._rm,
    Kind.SET_PERMS: Connection._set_perms,
    Kind.IS_DOMAIN_INTRODUCED: Connection._is_domain_introduced,
    Kind.RESUME: Connection._privileged,
    Kind.SET_TARGET: Connection._privileged,
    Kind.RESET_WATCHES: Connection._reset_watches,
    Kind.DIRECTORY_PART: Connection._directory_part,
}
