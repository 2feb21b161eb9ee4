"""The control socket of a process: requests for every guest that it runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from vmm.control.places import check_free, make_folder, socket_of
from vmm.control.protocol import MAX_LINE_BYTES, STREAMS, packed, parsed
from vmm.errors import PyvmmError
from vmm.host import log
from vmm.host.chardev import Tee
from vmm.host.unixsocket import accept, listener, shut_down

if TYPE_CHECKING:
    import socket

MAX_CLIENTS = 16
CLIENT_WAIT_S = 5
"""How long somebody may not take what he is sent."""

REQUEST_WAIT_S = 30
"""How long a client may take for a request, or between two of them."""

CHUNK_BYTES = 512


class Requests(Protocol):
    """Who carries requests out."""

    def answer(self, request: dict[str, Any]) -> Any:
        """One request's value, in terms of JSON.  PyvmmError."""
        ...

    def console(self, request: dict[str, Any]) -> tuple[Tee, Callable[[bytes], None]]:
        """A guest's console: who shows its output, and what takes input.  PyvmmError."""
        ...

    def stream(self, request: dict[str, Any], left: Callable[[], bool]) -> Iterator[str]:
        """The text of `trace` or `stats`, until `left`.  PyvmmError before the first piece."""
        ...


class ControlServer:
    """A thread waits for clients, and each of them has one: requests may take long."""

    def __init__(self, name: str, requests: Callable[[], Requests]) -> None:
        """PyvmmError where a guest of that name runs already, or where there is no place for the socket.

        `requests` makes those who carry requests out; it is called when the first one comes.
        """
        make_folder()
        check_free(name)
        self._path = socket_of(name)
        self._listener = listener(self._path, MAX_CLIENTS)
        self._make_requests = requests
        self._clients: set[socket.socket] = set()
        self._closing = False
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    @cached_property
    def _requests(self) -> Requests:
        return self._make_requests()

    def _accept(self) -> None:
        while True:
            try:
                client = accept(self._listener)
            except OSError:
                return
            if len(self._clients) >= MAX_CLIENTS:
                with client, suppress(OSError):
                    client.sendall(packed({"error": f"the guest talks to {MAX_CLIENTS} others already; try again later"}))
                continue
            self._clients.add(client)
            threading.Thread(target=self._serve, args=[client], name="control-client", daemon=True).start()

    def _serve(self, client: "socket.socket") -> None:
        try:
            client.settimeout(REQUEST_WAIT_S)
            with client, client.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    request = parsed(line)
                    if request is None:  # what follows cannot be told from the rest of it
                        client.sendall(packed({"error": f"a request is a line of JSON of up to {MAX_LINE_BYTES} bytes"}))
                        return
                    if request.get("do") in STREAMS:
                        self._stream(client, request)
                        return
                    client.sendall(packed(self._answer(partial(self._requests.answer, request))))
        except OSError:
            pass  # the client has gone, or has taken too long
        finally:
            self._clients.discard(client)

    def _answer(self, action: Callable[[], Any]) -> dict[str, Any]:
        try:
            return {"ok": action()}
        except PyvmmError as error:
            return {"error": str(error)}
        except Exception as error:  # a fault of pyvmm's: the guest goes on
            log.get(__name__).exception("fault in a control request", error=repr(error))
            return {"error": f"internal fault of pyvmm: {error!r}"}

    def _stream(self, client: "socket.socket", request: dict[str, Any]) -> None:
        if request["do"] == "console":
            self._console(client, request)
            return
        gone = threading.Event()
        pieces: list[Iterator[str]] = []

        def begin() -> None:
            pieces.append(self._requests.stream(request, lambda: gone.is_set() or self._closing))

        answer = self._answer(begin)
        client.sendall(packed(answer))
        if not pieces:
            return
        client.settimeout(CLIENT_WAIT_S)
        threading.Thread(target=_watch, args=[client, gone], name="control-watch", daemon=True).start()
        for piece in pieces[0]:
            client.sendall(piece.encode())

    def _console(self, client: "socket.socket", request: dict[str, Any]) -> None:
        found: list[tuple[Tee, Callable[[bytes], None]]] = []
        answer = self._answer(lambda: found.append(self._requests.console(request)))
        client.sendall(packed(answer))
        if not found:
            return
        ((tee, offer),) = found
        client.settimeout(CLIENT_WAIT_S)
        tee.add(client)
        try:
            while True:
                try:
                    data = client.recv(CHUNK_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    return
                offer(data)
        finally:
            tee.remove(client)

    def close(self) -> None:
        """Take no more requests; the socket's file goes."""
        self._closing = True
        self._path.unlink(missing_ok=True)
        shut_down(self._listener)
        self._listener.close()
        for client in list(self._clients):
            with suppress(OSError):  # it has gone by itself
                shut_down(client)


def _watch(client: "socket.socket", gone: threading.Event) -> None:
    """Notice that a client which says nothing more has gone."""
    while not gone.is_set():
        try:
            if not client.recv(CHUNK_BYTES):
                gone.set()
        except TimeoutError:
            continue
        except OSError:
            gone.set()
