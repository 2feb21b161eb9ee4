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
ANSWER_WAIT_S = 5


class Control:
    """A connection to the process of a guest; a context manager."""

    def __init__(self, guest: str) -> None:
        """By name or domid.  PyvmmError where no such guest runs, or several do."""
        self._name = guest
        self._socket = _connect(guest) or self._search(guest)
        self._lines = self._socket.makefile("rb")

    @staticmethod
    def _search(guest: str) -> socket.socket:
        """Among all guests of all processes."""
        found, everybody = [], []
        for place in names():
            for status in statuses_of(place):
                everybody.append(status["name"])
                if guest in (status["name"], str(status["domid"])):
                    found.append(place)
        if len(found) > 1:
            raise PyvmmError(f"{len(found)} guests are domain {guest} of their processes; name the one that you mean")
        connection = _connect(found[0]) if found else None
        if connection is None:
            raise PyvmmError(f"no guest called {guest!r} runs here; those that do: {', '.join(everybody) or 'none'}")
        return connection

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, what: str, **words: object) -> Any:
        """Have it carry out a request: the answer's value.  PyvmmError with the guest's own sentence."""
        try:
            self._socket.sendall(json.dumps({"do": what, "guest": self._name, **words}).encode() + b"\n")
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

    def follow(self, what: str, words: dict[str, Any]) -> int:
        """What a guest does, as text on standard output, until its end or an interrupt: the exit status."""
        self.ask(what, **words)
        ended = True
        try:
            while data := self._lines.read1(CHUNK_BYTES):
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
        except KeyboardInterrupt:
            ended = False
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)  # it sends what it has counted
            while data := self._lines.read1(CHUNK_BYTES):
                sys.stdout.buffer.write(data)
            sys.stdout.flush()
        if ended and what == "trace":
            print(f"pyvmm: the guest {self._name!r} has ended", file=sys.stderr)
        return ExitStatus.POWERED_OFF

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


def _connect(place: str) -> socket.socket | None:
    """To the process whose first guest has this name; None where there is none."""
    connection = socket.socket(socket.AF_UNIX)
    if "/" in place or connection.connect_ex(str(socket_of(place))) != 0:
        connection.close()
        return None  # none, or one left behind by a process that was killed
    return connection


def statuses_of(place: str) -> list[dict[str, Any]]:
    """What the guests of one process say of themselves."""
    connection = _connect(place)
    if connection is None:
        return []
    connection.settimeout(ANSWER_WAIT_S)
    try:
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b'{"do": "status"}\n')
            answer = json.loads(lines.readline() or b"{}")
    except (OSError, ValueError):
        return []
    found: list[dict[str, Any]] = answer.get("ok", [])
    return found


def statuses() -> list[dict[str, Any]]:
    """What each running guest says of itself."""
    return [status for place in names() for status in statuses_of(place)]


def print_list(*, as_json: bool) -> None:
    """The running guests, one a line."""
    found = statuses()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'Name':<24}{'ID':>4}{'Mem':>8}{'VCPUs':>7}  {'State':<10}{'PID':>9}{'Time(s)':>10}  Image")
    for guest in found:
        print(
            f"{guest['name']:<24}{guest['domid']:>4}{guest['memory_mib']:>8}{guest['vcpus']:>7}  {guest['state']:<10}"
            f"{guest['pid']:>9}{guest['seconds']:>10}  {guest['image']}"
        )
