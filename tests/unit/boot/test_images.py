"""ELF images, bzImages and compressed payloads, good and bad."""

import bz2
import gzip
import lzma
import os
import struct
import zlib
from pathlib import Path

import cramjam
import lzallright
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.images import Load, bzimage, elf, good, note
from vmm.boot.bzimage import payload
from vmm.boot.decompress import LZ4_BLOCK_BYTES, Corrupt, decompress
from vmm.boot.elf import ElfImage
from vmm.boot.errors import ImageError
from vmm.boot.hypercall_sites import find_sites
from vmm.boot.image import Loading, load_image
from vmm.boot.unpacked import SEARCH_BYTES, Unpacked

PLAIN = bytes(range(256)) * 4000


def lz4_legacy(data: bytes) -> bytes:
    blocks = [
        bytes(cramjam.lz4.compress_block(data[start : start + LZ4_BLOCK_BYTES], store_size=False))
        for start in range(0, len(data), LZ4_BLOCK_BYTES)
    ]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def lzop(data: bytes) -> bytes:
    """lzop's container with one block, its header as lzop 1.04 writes it (lzop.h; checksums are not read)."""
    packed = lzallright.LZOCompressor().compress(data)
    head = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBIIIIB", 0x1040, 0x20A0, 0x940, 1, 9, 0x1, 0o644, 0, 0, 0)
    blocks = struct.pack(">III", len(data), len(packed), zlib.adler32(data)) + packed + bytes(4)
    return head + bytes(4) + blocks


PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": lz4_legacy,
    "zstd": zstandard.ZstdCompressor().compress,
    "lzo": lzop,
}
SIZE_WORD = struct.pack("<I", len(PLAIN))  # the kernel's build appends it


@pytest.mark.parametrize("name", PACKERS)
def test_every_compression_is_unpacked_with_the_size_that_the_build_appends(name: str) -> None:
    assert decompress(PACKERS[name](PLAIN) + SIZE_WORD)[:] == PLAIN


def test_lz4_has_blocks_of_8_mib_each() -> None:
    plain = PLAIN * 20
    assert len(plain) > 2 * LZ4_BLOCK_BYTES
    assert decompress(lz4_legacy(plain) + SIZE_WORD)[:] == plain


@pytest.mark.parametrize("name", PACKERS)
def test_truncated_stream_is_corrupt(name: str) -> None:
    packed = PACKERS[name](PLAIN)
    with pytest.raises(Corrupt, match=name):
        decompress(packed[: len(packed) // 2])


@pytest.mark.parametrize("name", PACKERS)
def test_bomb_is_stopped_at_the_limit(name: str) -> None:
    bomb = PACKERS[name](bytes(8 << 20))
    with pytest.raises(Corrupt, match="grows beyond 1 MiB"):
        decompress(bomb, limit_bytes=1 << 20)


@pytest.mark.parametrize("name", PACKERS)
@given(st.data())
def test_damaged_stream_is_corrupt_or_something(name: str, data: st.DataObject) -> None:
    packed = bytearray(PACKERS[name](b"a little kernel " * 50))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(decompress(bytes(packed), limit_bytes=1 << 24)) <= 1 << 24
    except Corrupt as error:
        assert str(error)


def test_unknown_compression_names_the_bytes() -> None:
    with pytest.raises(Corrupt, match="41 42 43 44"):
        decompress(b"ABCDEFGH")


def test_what_was_unpacked_is_found_across_the_pieces_that_are_looked_through() -> None:
    unpacked = Unpacked(1 << 20, 1 << 30)
    unpacked.append(bytes(SEARCH_BYTES - 2) + b"needle")
    unpacked.append(bytes(SEARCH_BYTES) + b"needle")  # more than there was room for
    second = 2 * SEARCH_BYTES + 4
    assert unpacked.find(b"needle") == SEARCH_BYTES - 2
    assert unpacked.find(b"needle", SEARCH_BYTES - 1) == second
    assert unpacked.find(b"needle", SEARCH_BYTES - 1, second + 5) == -1
    assert unpacked.find(b"needle", SEARCH_BYTES - 1, second + 6) == second
    assert (len(unpacked), unpacked[-6:]) == (second + 6, b"needle")
    unpacked.close()


@pytest.mark.parametrize("bits", [32, 64])
def test_pvh_elf_is_parsed(bits: int) -> None:
    image = ElfImage(good(bits=bits), "image")
    assert image.entry == 0x100000
    assert [(segment.gpa, segment.file_bytes, segment.memory_bytes) for segment in image.segments] == [(0x100000, 64, 4096)]


def test_bzimage_gives_the_elf_inside(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(zstandard.compress(good())))
    assert load_image(path).entry == 0x100000


def test_an_image_is_unpacked_while_its_owner_does_something_else(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(zstandard.compress(good())))
    loading = Loading(path)
    assert loading.image().entry == 0x100000


def test_what_is_wrong_with_an_image_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(b"nothing that Linux uses"))
    for place, reason in ((path, "cannot be unpacked"), (tmp_path / "missing", "No such file")):
        loading = Loading(place)
        with pytest.raises(ImageError, match=reason):
            loading.image()


BAD_ELF = {
    "neither an ELF": b"MZ" + bytes(100),
    "little-endian x86": b"\x7fELF\x02\x02" + bytes(100),
    "for EM_AARCH64": elf([Load(0x100000, b"x")], note(0x100000), machine=183),
    "without program headers": elf([], None),
    "no XEN_ELFNOTE_PHYS32_ENTRY": elf([Load(0x100000, b"x")]),
    "nothing to load": elf([], note(0x100000)),
    "in none of its segments": elf([Load(0x100000, b"x")], note(0x200000)),
    "overlap": elf([Load(0x100000, b"x", 8192), Load(0x101000, b"y")], note(0x100000)),
    "wraps around": elf([Load(2**64 - 4096, b"x", 8192), Load(0x100000, b"y")], note(0x100000)),
    "more bytes in the file": elf([Load(0x100000, b"x" * 100, 1)], note(0x100000)),
    "ends within its header": good()[:5],
    "is truncated": good()[:-40],
}


@pytest.mark.parametrize("reason", BAD_ELF)
def test_bad_elf_is_refused_with_its_reason(reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        ElfImage(BAD_ELF[reason], "image")


def test_note_of_another_vendor_does_not_count() -> None:
    with pytest.raises(ImageError, match="no XEN_ELFNOTE"):
        ElfImage(elf([Load(0x100000, b"x")], note(0x100000, name=b"GNU\0")), "image")


def test_bad_bzimages_are_refused_with_their_reason() -> None:
    packed = gzip.compress(good())
    with pytest.raises(ImageError, match=r"boot protocol 2\.07"):
        payload(bzimage(packed, protocol=0x207), "image")
    with pytest.raises(ImageError, match="truncated"):
        payload(bzimage(packed, length=len(packed) + 1), "image")
    with pytest.raises(ImageError, match="cannot be unpacked"):
        payload(bzimage(packed[:-30]), "image")
    with pytest.raises(ImageError, match="cannot be unpacked"):
        payload(bzimage(b"nothing that Linux uses"), "image")


def test_missing_and_empty_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        load_image(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="is empty"):
        load_image(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ImageError, match="not a regular file"):
            load_image(place)


@given(st.data())
def test_any_damage_to_an_elf_is_refused_or_harmless(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([32, 64]))
    image = bytearray(good(bits=bits))
    for _ in range(data.draw(st.integers(1, 5))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(image)))
    try:
        parsed = ElfImage(bytes(image[:cut]) if data.draw(st.booleans()) else bytes(image), "image")
    except ImageError as error:
        assert "image" in str(error)
    else:
        assert all(segment.file_offset + segment.file_bytes <= len(image) for segment in parsed.segments)
        find_sites(parsed)


@pytest.mark.parametrize("where", [0x10000, 2**63, -1])
def test_a_broken_section_table_is_no_symbols(where: int) -> None:
    image = bytearray(good(bits=64))
    struct.pack_into("<Q", image, 40, where % 2**64 if where >= 0 else len(image) - 3)  # e_shoff
    struct.pack_into("<H", image, 60, 1)  # e_shnum
    assert ElfImage(bytes(image), "image").symbols("xen_hypercall_amd") == {}


@given(st.binary(max_size=2048))
def test_any_bytes_after_a_boot_sector_are_refused(tail: bytes) -> None:
    sector = bzimage(b"")[:0x202] + b"HdrS" + tail
    with pytest.raises(ImageError):
        payload(sector, "image")


def test_two_candidate_pairs_are_an_error_and_not_a_guess() -> None:
    def function(body: bytes) -> bytes:
        return body.ljust(16, b"\xcc")

    pair = function(b"\x0f\x01\xd9\xc3") + function(b"\x0f\x01\xc1\xc3")
    one = ElfImage(elf([Load(0x100000, pair)], note(0x100000)), "image")
    assert [site.gpa for site in find_sites(one)] == [0x100000, 0x100010]
    two = ElfImage(elf([Load(0x100000, pair + bytes(64) + pair)], note(0x100000)), "image")
    with pytest.raises(ImageError, match="2 places"):
        find_sites(two)
