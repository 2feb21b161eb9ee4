"""`pyvmm list`, `shutdown` and the other commands on a running guest."""

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from vmm.control.places import names, socket_of
from vmm.errors import ExitStatus, PyvmmError

CHUNK_BYTES = 64 << 10


class Control:
    """A connection to a guest's control socket; a context manager."""

    def __init__(self, name: str) -> None:
        """PyvmmError where no such guest runs."""
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(socket_of(name)))
        except OSError:
            self._socket.close()
            running = ", ".join(found["name"] for found in statuses()) or "none"
            raise PyvmmError(f"no guest called {name!r} runs here; those that do: {running}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, what: str, **words: object) -> Any:
        """Have it carry out a request: the answer's value.  PyvmmError with the guest's own sentence."""
        try:
            self._socket.sendall(json.dumps({"do": what, **words}).encode() + b"\n")
            answer = json.loads(self._lines.readline() or b"{}")
        except (OSError, ValueError):
            answer = {}
        if "error" in answer:
            raise PyvmmError(answer["error"])
        if "ok" not in answer:
            if what == "destroy":
                return None  # it was quicker than its answer
            raise PyvmmError(f"the guest {self._name!r} ended before it answered")
        return answer["ok"]

    def console(self) -> int:
        """The guest's console on this terminal, until Ctrl-] or its end: the exit status."""
        from vmm.host.terminal import Terminal

        self.ask("console")
        left = threading.Event()

        def leave() -> None:
            left.set()
            self._socket.shutdown(socket.SHUT_RDWR)

        def offer(data: bytes) -> None:
            with suppress(OSError):  # it has ended, which the other direction notices
                self._socket.sendall(data)

        terminal = Terminal(0, leave)
        terminal.start(offer)
        try:
            while data := self._socket.recv(CHUNK_BYTES):
                os.write(1, data)
        except OSError:
            pass
        finally:
            terminal.restore()
        if not left.is_set():
            print(f"pyvmm: the guest {self._name!r} has ended", file=sys.stderr)
        return ExitStatus.POWERED_OFF


def statuses() -> list[dict[str, Any]]:
    """What each running guest says of itself."""
    found = []
    for name in names():
        connection = socket.socket(socket.AF_UNIX)
        with connection:
            if connection.connect_ex(str(socket_of(name))) != 0:
                continue  # left behind by one that was killed
            with connection.makefile("rb") as lines:
                connection.sendall(b'{"do": "status"}\n')
                answer = json.loads(lines.readline() or b"{}")
        if "ok" in answer:
            found.append(answer["ok"])
    return found


def print_list(*, as_json: bool) -> None:
    """The running guests, one a line."""
    found = statuses()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'Name':<24}{'ID':>4}{'Mem':>8}{'VCPUs':>7}{'PID':>9}{'Time(s)':>10}  Image")
    for guest in found:
        print(
            f"{guest['name']:<24}{guest['domid']:>4}{guest['memory_mib']:>8}{guest['vcpus']:>7}{guest['pid']:>9}"
            f"{guest['seconds']:>10}  {guest['image']}"
        )
