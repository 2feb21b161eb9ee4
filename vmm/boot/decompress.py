"""The compressions of a Linux bzImage, each by its library, imported when it is needed; none may grow without end.

Source: Linux arch/x86/boot/compressed/Makefile and scripts/Makefile.lib (what the build appends to each stream).
"""

from collections.abc import Callable, Iterator
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


Packed = bytes | memoryview


class Corrupt(Exception):
    """The stream is not what its first bytes promise; the text says how."""


class Compression(NamedTuple):
    """How a payload starts, and how to unpack it in pieces."""

    name: str
    magic: bytes
    pieces: Callable[[Packed], Iterator[bytes]]


def _gzip(data: Packed) -> Iterator[bytes]:
    import zlib

    unpacker = zlib.decompressobj(31)
    pending: Packed = data
    while pending and not unpacker.eof:
        try:
            yield unpacker.decompress(pending, CHUNK_BYTES)
        except zlib.error as error:
            raise Corrupt(str(error)) from None
        pending = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise Corrupt("it ends too early")


def _stream(unpacker: "BZ2Decompressor | LZMADecompressor", data: Packed) -> Iterator[bytes]:
    piece = unpacker.decompress(data, CHUNK_BYTES)
    while True:
        yield piece
        if unpacker.eof:
            return
        if unpacker.needs_input:
            raise Corrupt("it ends too early")
        piece = unpacker.decompress(b"", CHUNK_BYTES)


def _bzip2(data: Packed) -> Iterator[bytes]:
    from bz2 import BZ2Decompressor

    return _stream(BZ2Decompressor(), data)


def _xz(data: Packed) -> Iterator[bytes]:
    from lzma import FORMAT_XZ

    return _lzma_stream(FORMAT_XZ, data)


def _lzma(data: Packed) -> Iterator[bytes]:
    # The build writes the size after the stream and leaves the header's unknown: the stream ends where it says so.
    from lzma import FORMAT_ALONE

    return _lzma_stream(FORMAT_ALONE, data)


def _lzma_stream(form: int, data: Packed) -> Iterator[bytes]:
    from lzma import LZMADecompressor, LZMAError

    try:
        yield from _stream(LZMADecompressor(form, memlimit=1 << 30), data)
    except LZMAError as error:
        raise Corrupt(str(error)) from None


def _zstd(data: Packed) -> Iterator[bytes]:
    import zstandard

    # Fed a little at a time: each call then yields a bounded amount, since a block of a few bytes makes at most 128 KiB.
    # The build appends the size after the frame, so the frame's own end counts.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    try:
        for start in range(0, len(data), ZSTD_FEED_BYTES):
            yield unpacker.decompress(data[start : start + ZSTD_FEED_BYTES])
            if unpacker.eof:
                return
    except zstandard.ZstdError as error:
        raise Corrupt(str(error)) from None
    raise Corrupt("it ends too early")


def _lz4(data: Packed) -> Iterator[bytes]:
    """The legacy frame: blocks of at most 8 MiB, each after its length; the build's size word ends the list."""
    import lz4.block

    position = 4
    while position + 4 <= len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        block = data[position + 4 : position + 4 + length]
        if position + 4 == len(data):
            return  # the four bytes are the size that the build appends
        if not length or len(block) < length:
            raise Corrupt("it ends too early")
        try:
            yield lz4.block.decompress(block, uncompressed_size=8 << 20)
        except lz4.block.LZ4BlockError as error:
            raise Corrupt(str(error)) from None
        position += 4 + length


def _lzo(data: Packed) -> Iterator[bytes]:
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
            yield block if packed_size == plain_size else unpacker.decompress(block, plain_size)
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
    plain = Unpacked(max(GROWTH * len(data), CHUNK_BYTES))
    try:
        _fill(plain, compression, data, limit_bytes)
    except BaseException:
        plain.close()
        raise
    return plain


def _fill(plain: Unpacked, compression: Compression, data: Packed, limit_bytes: int) -> None:
    try:
        for piece in compression.pieces(data):
            if len(plain) + len(piece) > limit_bytes:
                raise Corrupt(f"it grows beyond {limit_bytes >> 20} MiB")
            plain.append(piece)
        if not plain:
            raise Corrupt("nothing is in it")
    except (OSError, EOFError, ValueError, MemoryError, Corrupt) as error:
        raise Corrupt(f"its {compression.name} stream is broken: {error}") from None
