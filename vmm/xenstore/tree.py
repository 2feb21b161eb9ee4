"""The tree: nodes with a value, children and permissions, and transactions over it.

A transaction works on copies of the nodes that it touches and remembers the generation of each that it looked at; it is
committed if none of them has changed meanwhile.  Source: xen/docs/misc/xenstore.txt.
"""

import errno
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmm.xenabi.values import Domid

MAX_PATH_BYTES = 3072
DOM0 = Domid(0)
_PATH = re.compile(r"/|(?:/[-/_@A-Za-z0-9]*[-_@A-Za-z0-9])")


class StoreError(Exception):
    """A refusal: the client gets the name of `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode[code])
        self.code = code


class Quota(NamedTuple):
    """What one domain may have, as C xenstored's defaults; dom0 may have any number."""

    nodes: int = 1000
    node_bytes: int = 2048
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024


class Permission(NamedTuple):
    """What a domain may do; the first of a node's list names its owner, and what all others may."""

    domid: Domid
    read: bool
    write: bool

    def __str__(self) -> str:
        return f"{'b' if self.read and self.write else 'r' if self.read else 'w' if self.write else 'n'}{self.domid}"

    @classmethod
    def parse(cls, text: str) -> "Permission":
        """From `r12` or the like; StoreError(EINVAL)."""
        match = re.fullmatch(r"([rwbn])(\d{1,5})", text)
        if match is None or int(match[2]) > 0xFFFF:
            raise StoreError(errno.EINVAL)
        return cls(Domid(int(match[2])), match[1] in "rb", match[1] in "wb")


Permissions = tuple[Permission, ...]


class Node:
    """One node; never changed once it is in the tree, but replaced."""

    __slots__ = ("children", "generation", "permissions", "value")

    def __init__(self, value: bytes, permissions: Permissions, children: tuple[str, ...] = (), generation: int = 0) -> None:
        self.value = value
        self.permissions = permissions
        self.children = children
        self.generation = generation

    @property
    def owner(self) -> Domid:
        """The domain that the first permission names."""
        return self.permissions[0].domid

    def allows(self, domid: Domid, *, write: bool) -> bool:
        """Whether a domain may read, or write."""
        if domid in (DOM0, self.owner):
            return True
        found = next((entry for entry in self.permissions[1:] if entry.domid == domid), self.permissions[0])
        return found.write if write else found.read


def check_path(path: str) -> str:
    """An absolute path as it is; StoreError(EINVAL)."""
    if len(path) > MAX_PATH_BYTES or not _PATH.fullmatch(path) or "//" in path:
        raise StoreError(errno.EINVAL)
    return path


def parent_of(path: str) -> str:
    """The path above; the root's is the root."""
    return path.rpartition("/")[0] or "/"


def join(path: str, name: str) -> str:
    """The path of a child."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


class Change(NamedTuple):
    """A node has changed; `exact` where those who watch a path above are told of something higher up."""

    path: str
    exact: bool
    node: Node
    """The node, or what it was before it was removed."""


class View:
    """The tree as one request or transaction sees it."""

    def __init__(self, tree: "Tree", limit: int | None) -> None:
        self._tree = tree
        self._limit = limit
        self._overlay: dict[str, Node | None] = {}
        self._seen: dict[str, int] = {}
        self._changes: dict[str, Change] = {}

    # ------------------------------------------------------------------------------------ looking

    def _find(self, path: str) -> Node | None:
        if path in self._overlay:
            return self._overlay[path]
        node = self._tree.nodes.get(path)
        if self._limit is not None and len(self._seen) >= self._limit and path not in self._seen:
            raise StoreError(errno.ENOSPC)
        self._seen.setdefault(path, node.generation if node is not None else 0)
        return node

    def get(self, path: str, domid: Domid, *, write: bool = False) -> Node:
        """A node that the domain may read, or write; StoreError(ENOENT, EACCES)."""
        node = self._find(path)
        if node is None:
            raise StoreError(errno.ENOENT if self._nearest(path).allows(domid, write=write) else errno.EACCES)
        if not node.allows(domid, write=write):
            raise StoreError(errno.EACCES)
        return node

    def _nearest(self, path: str) -> Node:
        while (node := self._find(path)) is None:
            path = parent_of(path)
        return node

    # ----------------------------------------------------------------------------------- changing

    def write(self, path: str, value: bytes, domid: Domid) -> None:
        """Set a value; the node and those above it are made as needed."""
        node = self._find(path)
        if node is None:
            self._make(path, value, domid)
        else:
            if not node.allows(domid, write=True):
                raise StoreError(errno.EACCES)
            self._check_size(value, domid)
            self._overlay[path] = Node(value, node.permissions, node.children)
        self._changed(path)

    def make(self, path: str, domid: Domid) -> None:
        """Make an empty node, unless it is there."""
        node = self._find(path)
        if node is None:
            self._make(path, b"", domid)
            self._changed(path)
        elif not node.allows(domid, write=True):
            raise StoreError(errno.EACCES)

    def _make(self, path: str, value: bytes, domid: Domid) -> None:
        nearest = self._nearest(path)
        if not nearest.allows(domid, write=True):
            raise StoreError(errno.EACCES)
        self._check_size(value, domid)
        permissions = nearest.permissions
        if domid != DOM0:  # what a domain makes is its own
            permissions = (permissions[0]._replace(domid=domid), *permissions[1:])
        missing = []
        while self._find(path) is None:
            missing.append(path)
            path = parent_of(path)
        if domid != DOM0 and self._tree.owned_by(domid) + self._made_by(domid) + len(missing) > self._tree.quota.nodes:
            raise StoreError(errno.ENOSPC)
        for new in reversed(missing):
            above = self._find(path)
            assert above is not None
            name = new.rpartition("/")[2]
            self._overlay[path] = Node(above.value, above.permissions, (*above.children, name))
            self._overlay[new] = Node(value if new == missing[0] else b"", permissions)
            path = new

    def _made_by(self, domid: Domid) -> int:
        found = 0
        for path, node in self._overlay.items():
            before = self._tree.nodes.get(path)
            found += (node is not None and node.owner == domid) - (before is not None and before.owner == domid)
        return found

    def _check_size(self, value: bytes, domid: Domid) -> None:
        if domid != DOM0 and len(value) > self._tree.quota.node_bytes:
            raise StoreError(errno.ENOSPC)

    def remove(self, path: str, domid: Domid) -> None:
        """Remove a node and all below it; one that is not there but whose parent is counts as removed."""
        if path == "/":
            raise StoreError(errno.EINVAL)
        node = self._find(path)
        if node is None:
            self.get(parent_of(path), domid, write=True)
            return
        if not node.allows(domid, write=True):
            raise StoreError(errno.EACCES)
        above = self.get(parent_of(path), domid, write=True)
        name = path.rpartition("/")[2]
        self._overlay[parent_of(path)] = Node(above.value, above.permissions, tuple(c for c in above.children if c != name))
        for below, old in list(self._subtree(path, node)):
            self._overlay[below] = None
            self._changes[below] = Change(below, below != path, old)

    def _subtree(self, path: str, node: Node) -> Iterator[tuple[str, Node]]:
        waiting = [(path, node)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            for name in node.children:
                below = join(path, name)
                found = self._find(below)
                if found is not None:
                    waiting.append((below, found))

    def set_permissions(self, path: str, permissions: Permissions, domid: Domid) -> None:
        """Replace a node's list; its owner and dom0 may, and only dom0 gives it to another owner."""
        node = self.get(path, domid, write=True)
        if domid not in (DOM0, node.owner):
            raise StoreError(errno.EACCES)
        if domid != DOM0 and permissions[0].domid != node.owner:
            raise StoreError(errno.EPERM)
        self._overlay[path] = Node(node.value, permissions, node.children)
        self._changed(path)

    def _changed(self, path: str) -> None:
        node = self._find(path)
        assert node is not None
        self._changes[path] = Change(path, False, node)

    @property
    def changes(self) -> list[Change]:
        """What it did, one change a node, by when each was first changed; a transaction tells of a node once, as Xen's."""
        return list(self._changes.values())

    # ----------------------------------------------------------------------------------- the end

    def conflicts(self) -> bool:
        """Whether a node that this view has looked at is no longer what it was."""
        for path, generation in self._seen.items():
            node = self._tree.nodes.get(path)
            if (node.generation if node is not None else 0) != generation:
                return True
        return False

    def commit(self) -> None:
        """Let the tree have the changes."""
        self._tree.apply(self._overlay)


class NodeRecord(NamedTuple):
    """A node as data; its children are the nodes below its path."""

    path: str
    value: bytes
    permissions: Permissions
    children: tuple[str, ...]


class Tree:
    """All nodes by path.  Owned by one thread."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.quota = quota or Quota()
        self._generations = itertools.count(1)
        self.nodes: dict[str, Node] = {"/": Node(b"", (Permission(DOM0, False, False),), (), next(self._generations))}
        self._owned: dict[Domid, int] = {DOM0: 1}

    def view(self, limit: int | None = None) -> View:
        """A view of the tree as it is now, that may look at so many nodes."""
        return View(self, limit)

    def owned_by(self, domid: Domid) -> int:
        """How many nodes a domain owns."""
        return self._owned.get(domid, 0)

    def record(self) -> tuple[NodeRecord, ...]:
        """All nodes as data, those above before those below."""
        return tuple(
            NodeRecord(path, node.value, node.permissions, node.children) for path, node in sorted(self.nodes.items())
        )

    def restore(self, record: Iterable[NodeRecord]) -> None:
        """Hold these nodes and no others; whoever has looked at any has to look again."""
        self.nodes.clear()
        self._owned.clear()
        self.apply({row.path: Node(row.value, row.permissions, row.children) for row in record})

    def apply(self, overlay: dict[str, Node | None]) -> None:
        """Take over a view's nodes."""
        for path, node in overlay.items():
            before = self.nodes.pop(path, None)
            if before is not None:
                self._owned[before.owner] -= 1
            if node is not None:
                node.generation = next(self._generations)
                self.nodes[path] = node
                self._owned[node.owner] = self._owned.get(node.owner, 0) + 1
