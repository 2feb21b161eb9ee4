"""Requests and responses of the network protocol.  Source: xen/include/public/io/netif.h.

Its structures have the same layout in both ABIs.
"""

import struct
from enum import IntEnum

TX_REQUEST = struct.Struct("<IHHHH")
"""grant reference, offset, flags, id, size."""
TX_RESPONSE = struct.Struct("<Hh")
"""id, status."""
RX_REQUEST = struct.Struct("<HxxI")
"""id, grant reference."""
RX_RESPONSE = struct.Struct("<HHHh")
"""id, offset, flags, size or status."""
EXTRA = struct.Struct("<BB6s")
"""type, flags, what belongs to the type; stands where a request or response would."""
EXTRA_GSO = struct.Struct("<HBxH")
"""size, type, features."""

EXTRA_MORE = 1
MAX_SLOTS = 18
"""Pieces of one packet (XEN_NETIF_NR_SLOTS_MIN)."""
MAX_EXTRAS = 5
MAX_PACKET_BYTES = 65535


# Plain numbers: they are looked at for every packet, and an IntFlag takes 1 us for each look.
TX_CSUM_BLANK, TX_MORE_DATA, TX_EXTRA_INFO = 1, 4, 8
"""NETTXF_*."""
RX_DATA_VALIDATED, RX_CSUM_BLANK, RX_MORE_DATA, RX_EXTRA_INFO = 1, 2, 4, 8
"""NETRXF_*."""


class Extra(IntEnum):
    """XEN_NETIF_EXTRA_TYPE_*."""

    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4


class Gso(IntEnum):
    """XEN_NETIF_GSO_TYPE_*."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 2


class Status(IntEnum):
    """XEN_NETIF_RSP_*."""

    NULL = 1
    OKAY = 0
    ERROR = -1
    DROPPED = -2
