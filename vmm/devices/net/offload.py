"""Checksums and segments that somebody else completes: the header in front of a packet that tells of them.

Source: <linux/virtio_net.h>, which tap devices use, too.
"""

import struct
from typing import NamedTuple

from vmm.devices.net.protocol import Gso

HEADER = struct.Struct("<BBHHHH")
"""flags, GSO type, bytes of headers, bytes a segment, where the checksum begins, where in that it stands."""

NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_ECN = 0, 1, 4, 0x80
TO_HEADER = {Gso.NONE: GSO_NONE, Gso.TCPV4: GSO_TCPV4, Gso.TCPV6: GSO_TCPV6}
FROM_HEADER = {number: kind for kind, number in TO_HEADER.items()}
PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0)
PEEK_BYTES = 256
"""How much of a packet's beginning is looked at for its headers."""

_ETHERNET_BYTES, _IPV6_BYTES, _TCP_BYTES = 14, 40, 20
_VLAN, _QINQ, _IPV4, _IPV6 = 0x8100, 0x88A8, 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_CHECKSUM_AT = {_TCP: 16, _UDP: 6}
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options


class NoTransport(Exception):
    """The packet has no TCP or UDP whose checksum could be completed."""


class Transport(NamedTuple):
    """Where a packet's TCP or UDP header begins, and where in it the checksum is."""

    start: int
    checksum_at: int
    end: int
    """Where the data begin."""


def find_transport(head: bytes) -> Transport:
    """Look at the first bytes of an Ethernet frame; NoTransport."""
    try:
        return _find(head)
    except (IndexError, KeyError):
        raise NoTransport from None


def _find(head: bytes) -> Transport:
    at, kind = _ETHERNET_BYTES, _big(head, 12)
    for _ in range(2):
        if kind in (_VLAN, _QINQ):
            kind = _big(head, at + 2)
            at += 4
    if kind == _IPV4:
        protocol, start = head[at + 9], at + (head[at] & 0xF) * 4
    elif kind == _IPV6:
        protocol, start = head[at + 6], at + _IPV6_BYTES
        while protocol in _EXTENSIONS:
            protocol, start = head[start], start + 8 + head[start + 1] * 8
    else:
        raise NoTransport
    size = (head[start + 12] >> 4) * 4 if protocol == _TCP else 8
    if start + size > len(head) or (protocol == _TCP and size < _TCP_BYTES):
        raise NoTransport
    return Transport(start, _CHECKSUM_AT[protocol], start + size)


def _big(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def header_for(head: bytes, gso: Gso, segment_bytes: int) -> bytes:
    """The header of a packet whose checksum is blank, and that is to be cut where `gso` says so; NoTransport."""
    found = find_transport(head)
    kind = TO_HEADER[gso]
    if kind == GSO_NONE:
        return HEADER.pack(NEEDS_CSUM, kind, 0, 0, found.start, found.checksum_at)
    return HEADER.pack(NEEDS_CSUM, kind, found.end, segment_bytes, found.start, found.checksum_at)
