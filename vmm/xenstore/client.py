"""A client of xenstore on its Unix socket: what `pyvmm xenstore` is made of."""

import errno
import os
import socket
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm.errors import PyvmmError
from vmm.xenstore.tree import StoreError
from vmm.xenstore.wire import Kind, Message, Reader

READ_BYTES = 64 << 10


class Client:
    """A connection; a context manager.  Methods raise StoreError for the store's refusals, PyvmmError when it is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            reason = error.strerror or error
            raise PyvmmError(
                f"no xenstore answers at {path}: {reason}; start a guest with `pyvmm run --xenstore {path}`"
            ) from None
        self._reader = Reader()
        self._answers: deque[Message] = deque()
        self._events: deque[tuple[str, str]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def _receive(self) -> None:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise PyvmmError(f"the xenstore at {self._path} has ended")
        for message in self._reader.feed(data):
            if message.kind == Kind.WATCH_EVENT:
                path, token, _ = message.payload.decode().split("\0")
                self._events.append((path, token))
            else:
                self._answers.append(message)

    def _ask(self, kind: Kind, *strings: str, value: bytes | None = None) -> bytes:
        payload = b"".join(text.encode() + b"\0" for text in strings) + (value or b"")
        self._socket.sendall(Message(kind, 0, 0, payload).pack())
        while not self._answers:
            self._receive()
        answer = self._answers.popleft()
        if answer.kind == Kind.ERROR:
            raise StoreError(getattr(errno, answer.payload.rstrip(b"\0").decode(), errno.EIO))
        return answer.payload

    def read(self, path: str) -> bytes:
        """A node's value."""
        return self._ask(Kind.READ, path)

    def write(self, path: str, value: bytes) -> None:
        """Set a node's value."""
        self._ask(Kind.WRITE, path, value=value)

    def remove(self, path: str) -> None:
        """Remove a node and all below it."""
        self._ask(Kind.RM, path)

    def children(self, path: str) -> list[str]:
        """The names below a node, however many."""
        got, generation = b"", b""
        while True:
            now, _, part = self._ask(Kind.DIRECTORY_PART, path, str(len(got))).partition(b"\0")
            if got and now != generation:  # it has changed on the way
                got = b""
                continue
            generation = now
            if part.endswith(b"\0\0") or part == b"\0":
                return [name.decode() for name in (got + part).split(b"\0") if name]
            got += part

    def permissions(self, path: str) -> list[str]:
        """Who may do what, as `n0` and `r1` say it."""
        return self._ask(Kind.GET_PERMS, path).decode().rstrip("\0").split("\0")

    def watch(self, path: str) -> None:
        """Be told of what happens at a node and below."""
        self._ask(Kind.WATCH, path, "watch")

    def event(self) -> str:
        """The path of the next event; waits for it."""
        while not self._events:
            self._receive()
        return self._events.popleft()[0]


def default_path() -> Path | None:
    """Where Xen's own tools look, too: $XENSTORED_PATH."""
    found = os.environ.get("XENSTORED_PATH")
    return Path(found) if found else None
