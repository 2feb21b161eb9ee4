"""The thread of one connected share: moves 9P messages between the guest's rings and the server.

Of the messages only the headers are looked at, and the name that a guest attaches to.
"""

import os
import struct
from collections import Counter
from collections.abc import Callable

from vmm.devices.bus.xenbus import Bound
from vmm.devices.ninep.ring import ShareRing
from vmm.host.eventloop import EventLoop
from vmm.host.helper import Helper
from vmm.xenabi.byte_ring import RingBroken

HEADER = struct.Struct("<IBH")
"""size of the whole message, type, tag.  Source: the 9P2000.L protocol description."""

TATTACH = 104
NO_USER = b"\xff" * 4
_ATTACH = struct.Struct("<II")
MAX_MESSAGE_BYTES = 1 << 24
MAX_ATTACH_BYTES = 8192
TURNS = 64
"""Times that bytes are moved before the thread looks at what else there is to do."""


class _Way:
    """One ring, its channel, and how much of the message in hand has still to come out of it."""

    def __init__(self, ring: ShareRing) -> None:
        self.ring = ring
        self.channel: Bound | None = None
        self.left = 0


class Mover:
    """Owned by its own thread after `start`."""

    def __init__(
        self, name: str, server: Helper, rings: list[ShareRing], root: bytes, failed: Callable[[str], None]
    ) -> None:
        self._server = server
        self._root = root
        self._failed = failed
        self._broken = False
        self._ways = [_Way(ring) for ring in rings]
        self._sender: _Way | None = None
        self._unsent = b""
        self._tags: dict[int, _Way] = {}
        self._head = b""
        self._receiver: _Way | None = None
        self._to_come = 0
        self._held = False
        self.counters: Counter[str] = Counter()
        self._loop = EventLoop(name)
        self.bell = self._loop.doorbell(self._serve)

    def bind(self, ring: int, channel: Bound) -> None:
        """Give a ring its channel; before `start`."""
        self._ways[ring].channel = channel

    def start(self) -> None:
        """Move messages."""
        self._loop.watch(self._server.socket.fileno(), self._serve)
        self._loop.start()
        self.bell.ring()

    def stop(self, done: Callable[[], None]) -> None:
        """End the server, unmap the rings, end the thread, then call `done` in it.  From any thread."""

        def end() -> None:
            self._broken = True
            for way in self._ways:
                if way.channel is not None:
                    way.channel.close()
                way.ring.close()
            self._server.close()
            done()

        self._loop.end(end)

    def _serve(self) -> None:
        if self._broken:
            return
        try:
            for _ in range(TURNS):
                if not self._send() | self._receive():
                    break
                for way in self._ways:
                    way.ring.fence()
            else:
                self.bell.ring()
            full = bool(self._unsent or self._sender)
            self._loop.watch_room(self._server.socket.fileno(), full)
        except RingBroken as error:
            self._fail(f"the front end broke its ring: {error}")
        except OSError:
            self._fail(self._server.how_it_ended())

    def _fail(self, why: str) -> None:
        self._broken = True
        self._loop.unwatch(self._server.socket.fileno())
        self._failed(why)

    # ----------------------------------------------------------------------------- to the server

    def _send(self) -> bool:
        """Pass on what the guest has written; whether anything moved."""
        moved = False
        if self._unsent:
            sent = self._try(self._server.socket.send, self._unsent)
            self._unsent = self._unsent[sent:]
            moved = sent > 0
        for way in [self._sender] if self._sender is not None else self._ways:
            while not self._unsent and self._send_part(way):
                moved = True
            if self._sender is not None or self._unsent:
                break  # the rest of this message first
        return moved

    def _send_part(self, way: _Way) -> bool:
        if not way.left and not self._begin(way):
            return False
        if not way.left:
            return True
        pieces = way.ring.requests(way.left)
        sent = self._try(self._server.socket.sendmsg, pieces) if pieces else 0
        was_full = way.ring.consume(sent)
        way.left -= sent
        self._sender = way if way.left else None
        if was_full and way.channel is not None:
            way.channel.notify()  # it may wait for room
        return sent > 0

    def _begin(self, way: _Way) -> bool:
        """Look at the next message's header; False where it is not there yet."""
        head = b"".join(map(bytes, way.ring.requests(HEADER.size)))
        if len(head) < HEADER.size:
            return False
        size, kind, tag = HEADER.unpack(head)
        if not HEADER.size <= size <= MAX_MESSAGE_BYTES:
            raise RingBroken(f"a message of {size} bytes")
        if kind == TATTACH:
            return self._attach(way, size, tag)
        self._tags[tag] = way
        way.left = size
        self._sender = way
        return True

    def _attach(self, way: _Way, size: int, tag: int) -> bool:
        """A guest attaches to the share, whatever name it gives: the server knows its folder by its path.

        A guest that names no user, as Linux does where it checks permissions itself, gets pyvmm's own.
        """
        if size > MAX_ATTACH_BYTES:
            raise RingBroken(f"an attach message of {size} bytes")
        message = b"".join(map(bytes, way.ring.requests(size)))
        if len(message) < size:
            return False
        fids_end = HEADER.size + _ATTACH.size
        name_end = fids_end + 2 + int.from_bytes(message[fids_end : fids_end + 2], "little")
        rest = name_end + 2 + int.from_bytes(message[name_end : name_end + 2], "little")
        if rest + 4 != size:
            raise RingBroken("an attach message that is not whole")
        user = os.getuid().to_bytes(4, "little") if message[rest:] == NO_USER else message[rest:]
        root = len(self._root).to_bytes(2, "little") + self._root
        body = message[HEADER.size : name_end] + root + user
        self._tags[tag] = way
        way.ring.consume(size)
        self._unsent = HEADER.pack(HEADER.size + len(body), TATTACH, tag) + body
        return True

    @staticmethod
    def _try(move: Callable[..., int], data: object) -> int:
        try:
            return move(data)
        except BlockingIOError:
            return 0

    # ------------------------------------------------------------------------------ to the guest

    def _receive(self) -> bool:
        """Pass on what the server has answered; whether anything moved."""
        if self._receiver is None and not self._next_answer():
            return False
        way = self._receiver
        assert way is not None
        room = way.ring.room(len(self._head) + self._to_come)
        if sum(map(len, room)) < len(self._head) + self._to_come:
            self._hold(True)  # until the guest has read what is there
            return False
        self._hold(False)
        if self._head:
            put = 0
            for piece in room:
                part = self._head[put : put + len(piece)]
                piece[: len(part)] = part
                put += len(part)
            way.ring.fill(put)
            self._head = b""
        elif self._to_come:
            try:
                taken = self._server.socket.recvmsg_into(room)[0]
            except BlockingIOError:
                return False
            if not taken:
                raise OSError("the stream has ended")
            way.ring.fill(taken)
            self._to_come -= taken
        if not self._to_come:
            self._receiver = None
            self.counters["messages"] += 1
            way.ring.publish()
            if way.channel is not None:
                way.channel.notify()
        return True

    def _hold(self, full: bool) -> None:
        """Do not look at the server's answers while the guest has no room for them."""
        if full != self._held:
            self._held = full
            fd = self._server.socket.fileno()
            if full:
                self._loop.unwatch(fd)
            else:
                self._loop.watch(fd, self._serve)

    def _next_answer(self) -> bool:
        try:
            part = self._server.socket.recv(HEADER.size - len(self._head))
        except BlockingIOError:
            return False
        if not part:
            raise OSError("the stream has ended")
        self._head += part
        if len(self._head) < HEADER.size:
            return False
        size, _, tag = HEADER.unpack(self._head)
        way = self._tags.pop(tag, None)
        if way is None or not HEADER.size <= size <= way.ring.size_bytes:
            raise OSError("the server answered what nobody asked")
        self._receiver, self._to_come = way, size - HEADER.size
        return True
