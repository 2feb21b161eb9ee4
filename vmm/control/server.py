"""The control socket of a running guest.

A request is one line of JSON, `{"do": NAME, ...}`, and so is its answer: `{"ok": VALUE}` or `{"error": SENTENCE}`.  After
`console` has been answered the connection carries the console's bytes, both ways.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmm.control.places import folder, socket_of
from vmm.errors import PyvmmError
from vmm.host import log
from vmm.host.chardev import Tee
from vmm.host.unixsocket import accept, answers, listener, shut_down

if TYPE_CHECKING:
    import socket

MAX_CLIENTS = 16
MAX_LINE_BYTES = 4096
CONSOLE_WAIT_S = 5
"""How long somebody who looks at the console may not take its output."""

CHUNK_BYTES = 512

Answer = Callable[[dict[str, Any]], Any]
"""Carries out one request: the answer's value, in terms of JSON; PyvmmError."""


class ControlServer:
    """Takes requests for one guest.  A thread waits for clients, and each of them has one: requests may take long."""

    def __init__(self, name: str, actions: dict[str, Answer], tee: Tee, offer: Callable[[bytes], None]) -> None:
        """PyvmmError where a guest of that name runs already, OSError where there is no place for the socket."""
        self._path = socket_of(name)
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.is_socket() and answers(self._path):
            raise PyvmmError(f"a guest called {name!r} runs already; give this one another --name")
        self._listener = listener(self._path, MAX_CLIENTS)
        self._actions = actions
        self._tee = tee
        self._offer = offer
        self._clients: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = accept(self._listener)
            except OSError:
                return
            if len(self._clients) >= MAX_CLIENTS:
                client.close()
                continue
            self._clients.add(client)
            threading.Thread(target=self._serve, args=[client], name="control-client", daemon=True).start()

    def _serve(self, client: "socket.socket") -> None:
        try:
            with client, client.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    request = _parsed(line)
                    client.sendall(_line(self._answer(request)))
                    if request.get("do") == "console":
                        self._console(client)
                        return
        except OSError:
            pass  # the client has gone
        finally:
            self._clients.discard(client)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request.get("do")
        action = self._actions.get(what) if isinstance(what, str) else None
        if what == "console":
            return {"ok": None}
        if action is None:
            return {"error": f"a guest can be asked for {', '.join(sorted([*self._actions, 'console']))}"}
        try:
            return {"ok": action(request)}
        except PyvmmError as error:
            return {"error": str(error)}
        except Exception as error:  # a fault of pyvmm's: the guest goes on
            log.get(__name__).exception("fault in a control request", request=what, error=repr(error))
            return {"error": f"internal fault of pyvmm: {error!r}"}

    def _console(self, client: "socket.socket") -> None:
        client.settimeout(CONSOLE_WAIT_S)
        self._tee.add(client)
        try:
            while True:
                try:
                    data = client.recv(CHUNK_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    return
                self._offer(data)
        finally:
            self._tee.remove(client)

    def close(self) -> None:
        """Take no more requests; the socket's file goes."""
        self._path.unlink(missing_ok=True)
        shut_down(self._listener)
        self._listener.close()
        for client in list(self._clients):
            with suppress(OSError):  # it has gone by itself
                shut_down(client)


# json is imported where it is used: most guests are asked for nothing.


def _parsed(line: bytes) -> dict[str, Any]:
    import json

    try:
        request = json.loads(line)
    except ValueError:
        return {}
    return request if isinstance(request, dict) else {}


def _line(answer: dict[str, Any]) -> bytes:
    import json

    return json.dumps(answer).encode() + b"\n"
