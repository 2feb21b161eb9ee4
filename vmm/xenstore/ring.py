"""A guest's ring to xenstore.  Source: xen/include/public/io/xs_wire.h, docs/misc/xenstore-ring.txt."""

import struct
from collections.abc import Callable

from vmm.xenabi.byte_ring import ByteRing, RingBroken
from vmm.xenabi.interfaces import SharedBytes
from vmm.xenstore.server import Connection
from vmm.xenstore.wire import Broken, Reader

RING_BYTES = 1024
MAX_OUTSTANDING = 20
"""Answers and events that wait for a guest before its requests do (C xenstored's outstanding requests)."""

TURNS = 16
"""Times that bytes are moved for one guest before it is another's turn."""

_REQUESTS_AT, _RESPONSES_AT = 0, RING_BYTES
_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD, _FEATURES, _CONNECTION, _ERROR = (2 * RING_BYTES + 4 * n for n in range(7))
_FEATURE_RECONNECTION, _FEATURE_ERROR = 1, 2
_CONNECTED, _RECONNECT = 0, 1
_ERROR_NONE, _ERROR_RINGIDX, _ERROR_PROTO = 0, 2, 3
_U32 = struct.Struct("<I")


class StoreRing:
    """The server's end.  A guest that lies in an index is cut off, and told so, until it reconnects."""

    def __init__(self, page: SharedBytes, connection: Connection, notify: Callable[[], None]) -> None:
        self._page = page
        self._requests = ByteRing(page, _REQUESTS_AT, RING_BYTES, _REQ_CONS, _REQ_PROD)
        self._responses = ByteRing(page, _RESPONSES_AT, RING_BYTES, _RSP_CONS, _RSP_PROD)
        self._connection = connection
        self._notify = notify
        self._reader = Reader()
        self._sending = b""
        self._cut_off = False
        self._put(_FEATURES, _FEATURE_RECONNECTION | _FEATURE_ERROR)

    def _get(self, offset: int) -> int:
        return int(_U32.unpack(self._page.read(offset, 4))[0])

    def _put(self, offset: int, value: int) -> None:
        self._page.write(offset, _U32.pack(value))

    def on_event(self) -> bool:
        """The guest has rung, or there is something to tell it: move what there is room for, both ways.

        True where it is to be called again: one guest that goes on asking must not keep the others waiting.
        """
        if self._get(_CONNECTION) == _RECONNECT:
            self._reconnect()
        for turn in range(TURNS):
            if self._cut_off or not (self._send() or self._receive()):
                if turn:
                    self._notify()
                return False
        self._notify()
        return True

    def _reconnect(self) -> None:
        self._connection.forget()
        while self._connection.take():
            pass
        self._reader, self._sending, self._cut_off = Reader(), b"", False
        for offset in (_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD):
            self._put(offset, 0)
        self._put(_ERROR, _ERROR_NONE)
        self._put(_CONNECTION, _CONNECTED)
        self._notify()

    def _receive(self) -> bool:
        if self._connection.backlog >= MAX_OUTSTANDING:
            return False
        try:
            data = self._requests.take()
            messages = self._reader.feed(data)
        except RingBroken:
            self._cut(_ERROR_RINGIDX)
            return True
        except Broken:
            self._cut(_ERROR_PROTO)
            return True
        for message in messages:
            self._connection.handle(message)
        return bool(data)

    def _send(self) -> bool:
        self._sending = self._sending or self._connection.take()
        if not self._sending:
            return False
        try:
            sent = self._responses.put(self._sending)
        except RingBroken:
            self._cut(_ERROR_RINGIDX)
            return True
        self._sending = self._sending[sent:]
        return bool(sent)

    def _cut(self, error: int) -> None:
        self._cut_off = True
        self._put(_ERROR, error)
