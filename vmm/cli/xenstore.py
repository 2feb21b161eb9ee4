"""`pyvmm xenstore`: look into a running hypervisor's xenstore from the host."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vmm.errors import PyvmmError, UsageError
from vmm.xenstore.client import Client, default_path
from vmm.xenstore.tree import StoreError, join

_ESCAPES = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x5C: "\\\\"}


class StoreRequest(NamedTuple):
    """What was asked for."""

    action: str
    paths: list[str]
    socket: Path | None = None
    full: bool = False
    permissions: bool = False


def xenstore(request: StoreRequest) -> int:
    """Do it: the exit status.  PyvmmError."""
    path = request.socket or default_path()
    if path is None:
        raise UsageError(
            "which xenstore? give --socket PATH, or set XENSTORED_PATH, to what `pyvmm run --xenstore PATH` was given"
        )
    with Client(path) as client:
        _ACTIONS[request.action](client, request)
    return 0


@contextmanager
def _about(action: str, path: str) -> Iterator[None]:
    """Turns the store's refusal of one path into a sentence."""
    try:
        yield
    except StoreError as error:
        reason = f"{os.strerror(error.code)} ({errno.errorcode[error.code]})"
        raise PyvmmError(f"cannot {action} {path}: {reason}") from None


def _read(client: Client, request: StoreRequest) -> None:
    for path in request.paths:
        with _about("read", path):
            print(shown(client.read(path)))


def _write(client: Client, request: StoreRequest) -> None:
    if len(request.paths) % 2:
        raise UsageError("xenstore write takes pairs: PATH VALUE")
    for path, value in zip(request.paths[::2], request.paths[1::2], strict=True):
        with _about("write", path):
            client.write(path, os.fsencode(value))


def _remove(client: Client, request: StoreRequest) -> None:
    for path in request.paths:
        with _about("remove", path):
            client.remove(path)


def _list(client: Client, request: StoreRequest) -> None:
    for top in request.paths or ["/"]:
        with _about("list", top):
            client.read(top)
            for line in _lines(client, top, request, 0):
                print(line)


def _lines(client: Client, path: str, request: StoreRequest, depth: int) -> Iterator[str]:
    for name in client.children(path):
        below = join(path, name)
        try:
            value = client.read(below)
            who = f"   ({','.join(client.permissions(below))})" if request.permissions else ""
            yield f'{below if request.full else " " * depth + name} = "{shown(value)}"{who}'
            yield from _lines(client, below, request, depth + 1)
        except StoreError as error:
            if error.code != errno.ENOENT:  # removed meanwhile
                raise


def _watch(client: Client, request: StoreRequest) -> None:
    for path in request.paths:
        with _about("watch", path):
            client.watch(path)
    while True:
        print(client.event())
        sys.stdout.flush()


def shown(value: bytes) -> str:
    """A value with what a terminal should not get written as escapes, as xenstore-ls does."""
    return "".join(_ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}") for byte in value)


_ACTIONS: dict[str, Callable[[Client, StoreRequest], None]] = {
    "ls": _list,
    "read": _read,
    "write": _write,
    "rm": _remove,
    "watch": _watch,
}
