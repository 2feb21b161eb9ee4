"""Listening on a Unix socket's path.

By what `socket` wraps, since most guests are never talked to: its enumerations cost each of them 2 ms.
"""

import _socket
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import PyvmmError

if TYPE_CHECKING:
    import socket

Listener = _socket.socket


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket's path."""
    probe = _socket.socket(_socket.AF_UNIX)
    try:
        return probe.connect_ex(str(path)) == 0
    finally:
        probe.close()


def listener(path: Path, backlog: int = 1) -> Listener:
    """A listening socket, in place of one that nobody listens on any more; `accept` takes from it.  PyvmmError."""
    server = _socket.socket(_socket.AF_UNIX)
    try:
        if path.is_socket():
            if answers(path):
                raise PyvmmError(f"the socket {path} is in use by another process")
            path.unlink()  # left behind by one that was killed
        server.bind(str(path))
        server.listen(backlog)
    except OSError as error:
        server.close()
        raise PyvmmError(f"cannot listen on {path}: {error.strerror or error}") from None
    except PyvmmError:
        server.close()
        raise
    return server


def accept(listening: Listener) -> "socket.socket":
    """Wait for the next client.  OSError once the listener has been shut down."""
    fd, _ = listening._accept()  # type: ignore[attr-defined]  # what `socket.accept` calls
    import socket

    return socket.socket(fileno=fd)


def shut_down(end: Listener) -> None:
    """No more clients, or bytes: whoever waits for them hears of it.  OSError where the other end did so first."""
    end.shutdown(_socket.SHUT_RDWR)
