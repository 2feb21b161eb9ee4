"""The compressions of a Linux bzImage, each by its library, imported when it is needed; none may grow without end.

Source: Linux arch/x86/boot/compressed/Makefile and scripts/Makefile.lib (what the build appends to each stream).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.unpacked import Unpacked

if TYPE_CHECKING:
    from bz2 import BZ2Decompressor
    from lzma import LZMADecompressor

MAX_IMAGE_BYTES = 1 << 30
"""No kernel is larger; a payload that is must be a bomb."""

CHUNK_BYTES = 1 << 22
GROWTH = 5
"""How many times larger than its payload a kernel usually is; memory for more is found when it is."""

ZSTD_FEED_BYTES = 1 << 12
LZ4_BLOCK_BYTES = 8 << 20

Packed = bytes | memoryview


class Corrupt(Exception):
    """The stream is not what its first bytes promise; the text says how."""


class Compression(NamedTuple):
    """How a payload starts, and how to unpack it."""

    name: str
    magic: bytes
    unpack: Callable[[Packed, Unpacked], None]


def _gzip(data: Packed, plain: Unpacked) -> None:
    import zlib

    unpacker = zlib.decompressobj(31)
    pending: Packed = data
    while pending and not unpacker.eof:
        try:
            plain.append(unpacker.decompress(pending, CHUNK_BYTES))
        except zlib.error as error:
            raise Corrupt(str(error)) from None
        pending = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise Corrupt("it ends too early")


def _bzip2(data: Packed, plain: Unpacked) -> None:
    from bz2 import BZ2Decompressor

    _stream(BZ2Decompressor(), data, plain)


def _xz(data: Packed, plain: Unpacked) -> None:
    from lzma import FORMAT_XZ

    _lzma_stream(FORMAT_XZ, data, plain)


def _lzma(data: Packed, plain: Unpacked) -> None:
    # The build writes the size after the stream and leaves the header's unknown: the stream ends where it says so.
    from lzma import FORMAT_ALONE

    _lzma_stream(FORMAT_ALONE, data, plain)


def _lzma_stream(form: int, data: Packed, plain: Unpacked) -> None:
    from lzma import LZMADecompressor, LZMAError

    try:
        _stream(LZMADecompressor(form, memlimit=1 << 30), data, plain)
    except LZMAError as error:
        raise Corrupt(str(error)) from None


def _stream(unpacker: "BZ2Decompressor | LZMADecompressor", data: Packed, plain: Unpacked) -> None:
    plain.append(unpacker.decompress(data, CHUNK_BYTES))
    while not unpacker.eof:
        if unpacker.needs_input:
            raise Corrupt("it ends too early")
        plain.append(unpacker.decompress(b"", CHUNK_BYTES))


def _zstd(data: Packed, plain: Unpacked) -> None:
    import zstandard

    # Fed a little at a time: each call then yields a bounded amount, since a block of a few bytes makes at most 128 KiB.
    # The build appends the size after the frame, so the frame's own end counts.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    try:
        for start in range(0, len(data), ZSTD_FEED_BYTES):
            plain.append(unpacker.decompress(data[start : start + ZSTD_FEED_BYTES]))
            if unpacker.eof:
                return
    except zstandard.ZstdError as error:
        raise Corrupt(str(error)) from None
    raise Corrupt("it ends too early")


def _lz4(data: Packed, plain: Unpacked) -> None:
    """The legacy frame: blocks, each after its length; the build's size word ends the list."""
    import cramjam

    position = 4
    while position + 4 <= len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        block = data[position + 4 : position + 4 + length]
        if position + 4 == len(data):
            return  # the four bytes are the size that the build appends
        if not length or len(block) < length:
            raise Corrupt("it ends too early")
        try:
            with plain.room(LZ4_BLOCK_BYTES) as room:
                size_bytes = cramjam.lz4.decompress_block_into(block, room, output_len=LZ4_BLOCK_BYTES)
        except cramjam.DecompressionError as error:
            raise Corrupt(str(error)) from None
        plain.count(size_bytes)
        position += 4 + length


def _lzo(data: Packed, plain: Unpacked) -> None:
    """lzop's container: a header, then blocks with both their lengths and checksums, ended by a zero."""
    import lzallright

    unpacker = lzallright.LZOCompressor()
    flags = int.from_bytes(data[17:21], "big")
    position = 21 + 12 + (4 if flags & 0x800 else 0)  # mode, times, and the filter where there is one
    if len(data) < position + 1:
        raise Corrupt("its header is cut short")
    position += 1 + data[position] + 4  # file name and header checksum
    checksums = 4 * bool(flags & 0x1) + 4 * bool(flags & 0x100)  # of the plain block
    packed_checksums = 4 * bool(flags & 0x2) + 4 * bool(flags & 0x200)
    while True:
        plain_size = int.from_bytes(data[position : position + 4], "big")
        if position + 4 > len(data):
            raise Corrupt("it ends too early")
        if plain_size == 0:
            return
        packed_size = int.from_bytes(data[position + 4 : position + 8], "big")
        if plain_size > 64 << 20 or packed_size > plain_size:
            raise Corrupt("a block has an impossible length")
        position += 8 + checksums + (packed_checksums if packed_size < plain_size else 0)
        block = bytes(data[position : position + packed_size])
        if len(block) < packed_size:
            raise Corrupt("it ends too early")
        try:
            plain.append(block if packed_size == plain_size else unpacker.decompress(block, plain_size))
        except lzallright.LZOError as error:
            raise Corrupt(str(error)) from None
        position += packed_size


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b\x08", _gzip),
    Compression("bzip2", b"BZh", _bzip2),
    Compression("xz", b"\xfd7zXZ\0", _xz),
    Compression("lz4", b"\x02\x21\x4c\x18", _lz4),
    Compression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Compression("lzo", b"\x89LZO\0\r\n\x1a\n", _lzo),
    Compression("lzma", b"\x5d\0\0", _lzma),
)


def decompress(data: Packed, limit_bytes: int = MAX_IMAGE_BYTES) -> Unpacked:
    """The plain bytes of a payload in any of these compressions.  Corrupt where it is none, broken, or too large."""
    first = bytes(data[:16])
    for compression in COMPRESSIONS:
        if first.startswith(compression.magic):
            break
    else:
        raise Corrupt(f"its first bytes, {first[:4].hex(' ')}, are no compression that Linux uses")
    plain = Unpacked(max(GROWTH * len(data), CHUNK_BYTES), limit_bytes)
    try:
        compression.unpack(data, plain)
        if not plain:
            raise Corrupt("nothing is in it")
    except BaseException as error:
        plain.close()
        if isinstance(error, OSError | EOFError | ValueError | MemoryError | Corrupt):
            raise Corrupt(f"its {compression.name} stream is broken: {error}") from None
        raise
    return plain
