"""Framing of GDB's remote protocol: packets, acknowledgements, the interrupt byte.

Source: Debugging with GDB, appendix E (Remote Serial Protocol), "Overview".
"""

MAX_PACKET_BYTES = 0x4000
INTERRUPT = b"\x03"
_ESCAPE, _FLIP = 0x7D, 0x20
_TO_ESCAPE = frozenset(b"#$}*")


class Broken(Exception):
    """What comes is not the protocol."""


def frame(payload: bytes) -> bytes:
    """A packet on the wire."""
    escaped = bytearray()
    for byte in payload:
        if byte in _TO_ESCAPE:
            escaped += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            escaped.append(byte)
    return b"$" + escaped + b"#%02x" % (sum(escaped) & 0xFF)


def unescape(data: bytes) -> bytes:
    """A payload as it was before `frame`."""
    if _ESCAPE not in data:
        return data
    found, flip = bytearray(), 0
    for byte in data:
        if byte == _ESCAPE and not flip:
            flip = _FLIP
        else:
            found.append(byte ^ flip)
            flip = 0
    return bytes(found)


class Reader:
    """Packets out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.acknowledge = True
        """Whether packets are answered by `+` and `-`; off after QStartNoAckMode."""
        self.acks = bytearray()
        """What is to be sent for the packets that came."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete, INTERRUPT among them.  Broken."""
        self._buffer += data
        found: list[bytes] = []
        while self._buffer:
            first = self._buffer[0]
            if first == INTERRUPT[0]:
                found.append(INTERRUPT)
                del self._buffer[0]
            elif first != ord("$"):
                del self._buffer[0]  # an acknowledgement, or noise before a packet
            else:
                end = self._buffer.find(b"#")
                if end > MAX_PACKET_BYTES or (end < 0 and len(self._buffer) > MAX_PACKET_BYTES):
                    raise Broken(f"a packet of more than {MAX_PACKET_BYTES} bytes")
                if end < 0 or len(self._buffer) < end + 3:
                    break
                body, check = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
                del self._buffer[: end + 3]
                if self._good(body, check):
                    found.append(unescape(body))
        return found

    def _good(self, body: bytes, check: bytes) -> bool:
        good = check.lower() == b"%02x" % (sum(body) & 0xFF)
        if self.acknowledge:
            self.acks += b"+" if good else b"-"
        return good or not self.acknowledge
