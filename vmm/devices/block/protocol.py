"""Requests of the block protocol, in the ABIs that a front end may use.  Source: xen/include/public/io/blkif.h.

Sectors are 512 bytes here, whatever sector size the device has.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.cstruct import Abi

SECTOR_BYTES = 512
SECTORS_A_PAGE = PAGE_BYTES // SECTOR_BYTES
MAX_SEGMENTS = 11
MAX_INDIRECT_SEGMENTS = 256


class Op(IntEnum):
    """BLKIF_OP_*."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    DISCARD = 5
    INDIRECT = 6


class Status(IntEnum):
    """BLKIF_RSP_*."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


SEGMENT = struct.Struct("<IBBxx")
"""grant reference, first sector, last sector: in a request, and in an indirect page."""

SEGMENTS_A_PAGE = PAGE_BYTES // SEGMENT.size


class Layout(NamedTuple):
    """Where the fields of one ABI's requests and responses are."""

    entry_bytes: int
    request: struct.Struct
    """operation, segments (or for a discard: flags), id, sector; for a discard also the number of sectors."""
    discard: struct.Struct
    segments_at: int
    indirect: struct.Struct
    """operation, operation of the whole, segments, id, sector, grant references of the pages with segments."""
    response: struct.Struct
    """id, operation, status."""


LAYOUTS = {
    Abi.X86_64: Layout(
        112, struct.Struct("<BBxxxxxxQQ"), struct.Struct("<BBxxxxxxQQQ"), 24, struct.Struct("<BBHxxxxQQxxxx8I"),
        struct.Struct("<QBxhxxxx"),
    ),
    Abi.X86_32: Layout(
        108, struct.Struct("<BBxxQQ"), struct.Struct("<BBxxQQQ"), 20, struct.Struct("<BBHQQxxxx8I"),
        struct.Struct("<QBxh"),
    ),
}  # fmt: skip
PROTOCOLS = {"x86_64-abi": Abi.X86_64, "x86_32-abi": Abi.X86_32}
"""What a front end may write as its `protocol`; the first where it writes none."""
