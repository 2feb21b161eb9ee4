"""The debugger's socket, and the thread that serves it: one debugger at a time, one after the other."""

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from vmm.errors import PyvmmError, UsageError
from vmm.host import log
from vmm.host.unixsocket import Listener, accept, listener
from vmm.machine.domain import Domain
from vmm.observe.gdb.packets import Broken, Reader, frame
from vmm.observe.gdb.stub import Detached, Killed, Stub
from vmm.observe.gdb.target import Target

CHECK_S = 0.2
FORMS = "PORT, ADDRESS:PORT or unix:PATH"


class GdbServer:
    """Listens for GDB for one domain.  `close` once the domain has stopped or is to go on alone."""

    def __init__(self, place: str, domain: Domain, kill: Callable[[], None], bits: int) -> None:
        """`kill` ends the guest at once, and its kernel has so many bits.  UsageError, PyvmmError."""
        self._kill = kill
        self._bits = bits
        self._path: Path | None = None
        self._socket = self._listen(place)
        self._domain = domain
        self._closing = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)
        self._thread.start()

    def _listen(self, place: str) -> Listener:
        if place.startswith("unix:") and place != "unix:":
            self._path = Path(place.removeprefix("unix:"))
            return listener(self._path)
        address, _, port = place.rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--gdb takes {FORMS}, not {place!r}")
        try:
            return socket.create_server((address or "127.0.0.1", int(port)), backlog=1)
        except OSError as error:
            raise PyvmmError(f"--gdb {place}: {error.strerror or error}") from None

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._closing.is_set():
            poller.poll()
            if self._closing.is_set():
                return
            with accept(self._socket) as connection:
                self._session(connection)

    def _session(self, connection: socket.socket) -> None:
        target = Target(self._domain)
        stub = Stub(target, self._bits)
        try:
            stub.attach()
            self._converse(connection, target, stub)
        except Detached:
            connection.sendall(frame(b"OK"))
        except Killed:
            self._kill()
        except (Broken, OSError) as error:
            log.get(__name__).warning("the debugger has gone; the guest goes on", reason=str(error))
        finally:
            if self._domain.outcome is None and not self._closing.is_set():
                target.release()
            target.close()

    def _converse(self, connection: socket.socket, target: Target, stub: Stub) -> None:
        reader = Reader()
        poller = select.poll()
        for fd in (connection.fileno(), target.wake, self._wake):
            poller.register(fd, select.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(CHECK_S * 1000 if stub.running else None))
            if target.wake in ready:
                os.eventfd_read(target.wake)
                if stub.running and target.stops:
                    connection.sendall(frame(stub.stopped(target.stops.popleft()).encode()))
            if connection.fileno() in ready:
                data = connection.recv(1 << 16)
                if not data:
                    raise Broken("it closed its connection")
                packets = reader.feed(data)
                connection.sendall(bytes(reader.acks))
                reader.acks.clear()
                for packet in packets:
                    self._answer(connection, reader, stub, packet)
            if stub.running and stub.ended() is not None:
                break
        if stub.running and (how := stub.ended()) is not None:
            connection.sendall(frame(how.encode()))

    @staticmethod
    def _answer(connection: socket.socket, reader: Reader, stub: Stub, packet: bytes) -> None:
        if packet == b"QStartNoAckMode":
            connection.sendall(frame(b"OK"))
            reader.acknowledge = False
            return
        answer = stub.handle(packet)
        if answer is not None:
            connection.sendall(frame(answer.encode("latin-1")))

    def close(self) -> None:
        """End the session, after it has heard how the guest ended; a Unix socket's file goes."""
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._socket.close()
        os.close(self._wake)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
