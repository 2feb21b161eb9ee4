"""From what a user writes after `--console` to the place that it means."""

import os
from pathlib import Path

from vmm.errors import PyvmmError, UsageError
from vmm.host.chardev import Chardev, Output, Stdio

FORMS = "stdio, pty, unix:PATH, file:PATH or none"


def open_chardev(spec: str, option: str = "--console") -> Chardev:
    """From one of FORMS.  UsageError, PyvmmError."""
    kind, _, path = spec.partition(":")
    try:
        if spec == "stdio":
            return Stdio()
        if spec == "none":
            return Output(None)
        if spec == "pty" or (kind == "unix" and path):
            from vmm.host.connections import Pty, UnixServer  # sockets cost every start 3 ms

            return Pty(option) if spec == "pty" else UnixServer(Path(path))
        if kind == "file" and path:
            return Output(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), owned=True)
    except OSError as error:
        raise PyvmmError(f"{option} {spec}: {error.strerror or error}") from None
    raise UsageError(f"{option} takes {FORMS}, not {spec!r}")
