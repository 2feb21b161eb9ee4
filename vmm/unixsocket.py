"""Listening on a Unix socket's path."""

import socket
from pathlib import Path

from vmm.errors import PyvmmError


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket's path."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def listen(path: Path, backlog: int = 1) -> socket.socket:
    """A listening socket, in place of one that nobody listens on any more.  PyvmmError."""
    server = socket.socket(socket.AF_UNIX)
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
