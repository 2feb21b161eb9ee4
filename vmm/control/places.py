"""Where the control sockets of running guests are."""

import os
from pathlib import Path

SUFFIX = ".control"


def folder() -> Path:
    """`/run/pyvmm` for root, else the user's own."""
    if not os.getuid():
        return Path("/run/pyvmm")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/pyvmm-{os.getuid()}") / "pyvmm"


def socket_of(name: str) -> Path:
    """The socket of the guest with a name."""
    return folder() / f"{name}{SUFFIX}"


def names() -> list[str]:
    """The guests that have a socket; one that was killed may have left its own behind."""
    try:
        return sorted(entry.name.removesuffix(SUFFIX) for entry in folder().iterdir() if entry.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
