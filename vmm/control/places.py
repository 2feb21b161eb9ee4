"""Where the control sockets of running guests are."""

import os
import stat
from pathlib import Path

from vmm.errors import PyvmmError
from vmm.host.unixsocket import answers

SUFFIX = ".control"
PRIVATE = 0o700


def folder() -> Path:
    """`/run/pyvmm` for root, else the user's own."""
    if not os.getuid():
        return Path("/run/pyvmm")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "pyvmm" if runtime else Path(f"/tmp/pyvmm-{os.getuid()}")


def make_folder() -> Path:
    """That folder, made where it is missing.  PyvmmError where it is somebody else's, or others may write there."""
    place = folder()
    place.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PyvmmError(
            f"{place} is not a folder that only this user may write to, so no other command can reach this guest; "
            "remove it, or set XDG_RUNTIME_DIR"
        )
    return place


def socket_of(name: str) -> Path:
    """The socket of the process whose first guest has this name."""
    return folder() / f"{name}{SUFFIX}"


def check_free(name: str) -> None:
    """PyvmmError where a guest of that name runs already."""
    path = socket_of(name)
    if path.is_socket() and answers(path):
        raise PyvmmError(f"a guest called {name!r} runs already; give this one another --name")


def names() -> list[str]:
    """The first guests of the processes that have a socket; one that was killed may have left its own behind."""
    try:
        return sorted(entry.name.removesuffix(SUFFIX) for entry in folder().iterdir() if entry.name.endswith(SUFFIX))
    except OSError:
        return []
