"""Messages between xenstore and its clients.  Source: xen/include/public/io/xs_wire.h."""

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("<IIII")
MAX_PAYLOAD_BYTES = 4096


class Kind(IntEnum):
    """XS_*: what a message is."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Message(NamedTuple):
    """One message; `kind` is a number, since a client may send any."""

    kind: int
    request_id: int
    transaction_id: int
    payload: bytes

    def pack(self) -> bytes:
        """Header and payload."""
        return HEADER.pack(self.kind, self.request_id, self.transaction_id, len(self.payload)) + self.payload


class Broken(Exception):
    """The client has left the protocol: a payload longer than any may be."""


class Reader:
    """Messages out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete; Broken."""
        self._buffer += data
        found = []
        while len(self._buffer) >= HEADER.size:
            kind, request_id, transaction_id, size = HEADER.unpack_from(self._buffer)
            if size > MAX_PAYLOAD_BYTES:
                raise Broken
            if len(self._buffer) < HEADER.size + size:
                break
            payload = bytes(self._buffer[HEADER.size : HEADER.size + size])
            del self._buffer[: HEADER.size + size]
            found.append(Message(kind, request_id, transaction_id, payload))
        return found
