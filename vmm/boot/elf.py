"""ELF images with a PVH entry: their segments, their note, and where their symbols are.

pyelftools' structure tables are used without its ELFFile class, whose import (with DWARF) costs more than the whole rest
of pyvmm's start.  Source: xen/include/public/elfnote.h.
"""

import itertools
import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Any, NamedTuple

from vmm.boot.errors import ImageError
from vmm.boot.unpacked import Unpacked
from vmm.host.lazily import lazily

with lazily("pdb", "inspect", "traceback", "dataclasses"):  # for its own debugging, and half of its import
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.structs import ELFStructs

PT_LOAD, PT_NOTE = "PT_LOAD", "PT_NOTE"
SHT_SYMTAB = "SHT_SYMTAB"
PF_X = 1
PHYS32_ENTRY = 18
"""XEN_ELFNOTE_PHYS32_ENTRY: the 32-bit physical address at which to enter."""

GUEST_OS = 6
"""XEN_ELFNOTE_GUEST_OS: its name, "linux" for Linux."""

MIN_ELF_BYTES = 52
MAX_NOTES_BYTES = 1 << 20
_BROKEN = (ELFError, ConstructError, struct.error, OverflowError, KeyError, ValueError)
"""What pyelftools raises, and what reading at an offset that makes no sense does."""
_MACHINES = {"EM_386", "EM_X86_64"}


class Segment(NamedTuple):
    """A PT_LOAD segment: file bytes to a physical address, zeros up to `memory_bytes`."""

    gpa: int
    file_offset: int
    file_bytes: int
    memory_bytes: int
    executable: bool
    virtual: int

    @property
    def end(self) -> int:
        """The first address behind it, guest-physical."""
        return self.gpa + self.memory_bytes


Data = bytes | mmap | Unpacked
"""What an image is read from."""


class ElfImage:
    """A parsed image; `data` holds the whole file, `bits` is 32 or 64, and `is_linux` is what its notes say.

    ImageError for whatever makes it unusable.
    """

    def __init__(self, data: Data, name: str) -> None:
        self.data = data
        self.name = name
        if data[:4] != b"\x7fELF":
            raise ImageError(f"{name} is neither an ELF file nor a bzImage")
        if len(data) < MIN_ELF_BYTES:
            raise ImageError(f"{name} is a broken ELF file: it ends within its header")
        bits = {b"\1\1": 32, b"\2\1": 64}.get(data[4:6])
        if bits is None:
            raise ImageError(f"{name} is not a little-endian x86 ELF file")
        self.bits = bits
        self._structs = ELFStructs(little_endian=True, elfclass=bits)
        self._structs.create_basic_structs()
        try:
            self._structs.create_advanced_structs()
            self._header = self._struct("Elf_Ehdr", 0)
            if self._header["e_machine"] not in _MACHINES:
                raise ImageError(f"{name} is an ELF file for {self._header['e_machine']}, not for x86")
            programs = self._program_headers()
            self.segments = self._segments(programs)
            notes = self._xen_notes(programs)
        except _BROKEN as error:
            raise ImageError(f"{name} is a broken ELF file: {str(error) or type(error).__name__}") from None
        if len(notes.get(PHYS32_ENTRY, b"")) not in (4, 8):
            raise ImageError(
                f"{name} has no XEN_ELFNOTE_PHYS32_ENTRY note, so it has no PVH entry point "
                "(Linux: build with CONFIG_XEN_PVH or CONFIG_PVH)"
            )
        entry = int.from_bytes(notes[PHYS32_ENTRY], "little") & 0xFFFF_FFFF
        if not any(segment.gpa <= entry < segment.end for segment in self.segments):
            raise ImageError(f"{name} says that it is entered at {entry:#x}, which is in none of its segments")
        self.entry = entry
        self.is_linux = notes.get(GUEST_OS, b"").rstrip(b"\0") == b"linux"

    def close(self) -> None:
        """Let the file go once it has been loaded: a kernel's tens of MiB would count as the process's own."""
        data, self.data = self.data, b""
        if not isinstance(data, bytes):
            data.close()

    def _struct(self, kind: str, offset: int) -> Any:
        if offset >= len(self.data):
            raise ImageError(f"{self.name} is truncated: it has no byte {offset}")
        layout = getattr(self._structs, kind)
        return layout.parse(self.data[offset : offset + layout.sizeof()])

    def _program_headers(self) -> list[Any]:
        count, size, start = self._header["e_phnum"], self._header["e_phentsize"], self._header["e_phoff"]
        if not count:
            raise ImageError(f"{self.name} is an ELF file without program headers: an object file is not an image")
        if start + count * size > len(self.data):
            raise ImageError(f"{self.name} is truncated: its program headers are beyond its end")
        return [self._struct("Elf_Phdr", start + index * size) for index in range(count)]

    def _segments(self, programs: list[Any]) -> list[Segment]:
        segments = []
        for header in programs:
            if header["p_type"] != PT_LOAD or not header["p_memsz"]:
                continue
            segment = Segment(
                header["p_paddr"],
                header["p_offset"],
                header["p_filesz"],
                header["p_memsz"],
                bool(header["p_flags"] & PF_X),
                header["p_vaddr"],
            )
            if segment.file_bytes > segment.memory_bytes:
                raise ImageError(
                    f"{self.name} has a segment at {segment.gpa:#x} with more bytes in the file than in memory"
                )
            if segment.end > 1 << 64:
                raise ImageError(f"{self.name} has a segment at {segment.gpa:#x} that wraps around the address space")
            if segment.file_offset + segment.file_bytes > len(self.data):
                raise ImageError(f"{self.name} is truncated: the segment at {segment.gpa:#x} is not all there")
            segments.append(segment)
        if not segments:
            raise ImageError(f"{self.name} has nothing to load")
        segments.sort()
        for before, after in itertools.pairwise(segments):
            if before.end > after.gpa:
                raise ImageError(f"{self.name} has segments that overlap at {after.gpa:#x}")
        return segments

    def _xen_notes(self, programs: list[Any]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for header in programs:
            if header["p_type"] != PT_NOTE:
                continue
            start, size = header["p_offset"], header["p_filesz"]
            if start + size > len(self.data) or size > MAX_NOTES_BYTES:
                raise ImageError(f"{self.name} is truncated: its notes are beyond its end")
            for kind, value in _xen_notes(bytes(self.data[start : start + size])):
                found.setdefault(kind, value)
        return found

    @property
    def end(self) -> int:
        """The end of the highest segment, guest-physical."""
        return max(segment.end for segment in self.segments)

    def symbols(self, *names: str) -> dict[str, int]:
        """Guest-physical addresses of those of these symbols that the image has and loads; none if its table is broken."""
        try:
            return self._symbols(names)
        except (ImageError, *_BROKEN):
            return {}

    def _symbols(self, names: tuple[str, ...]) -> dict[str, int]:
        found: dict[str, int] = {}
        for header in self._section_headers():
            if header["sh_type"] != SHT_SYMTAB:
                continue
            strings = self._struct_at(header["sh_link"])
            size = 24 if self._structs.elfclass == 64 else 16
            first, last = header["sh_offset"], header["sh_offset"] + header["sh_size"]
            texts_at, texts_end = strings["sh_offset"], strings["sh_offset"] + strings["sh_size"]
            for name in names:
                text = self.data.find(b"\0" + name.encode() + b"\0", texts_at, texts_end)
                if text < 0:
                    continue
                wanted = struct.pack("<I", text + 1 - texts_at)
                at = self.data.find(wanted, first, last)
                while at >= 0 and (at - first) % size:
                    at = self.data.find(wanted, at + 1, last)
                if at >= 0:
                    virtual = self._struct("Elf_Sym", at)["st_value"]
                    for segment in self.segments:
                        if segment.virtual <= virtual < segment.virtual + segment.memory_bytes:
                            found[name] = segment.gpa + virtual - segment.virtual
        return found

    def _section_headers(self) -> list[Any]:
        return [self._struct_at(index) for index in range(self._header["e_shnum"])]

    def _struct_at(self, index: int) -> Any:
        return self._struct("Elf_Shdr", self._header["e_shoff"] + index * self._header["e_shentsize"])

    def byte_at(self, gpa: int, size_bytes: int) -> bytes:
        """What the file loads at a guest-physical address; short where it loads less."""
        for segment in self.segments:
            if segment.gpa <= gpa < segment.gpa + segment.file_bytes:
                start = segment.file_offset + gpa - segment.gpa
                return self.data[start : min(start + size_bytes, segment.file_offset + segment.file_bytes)]
        return b""


def _xen_notes(notes: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and value of each of Xen's notes, as far as they are whole."""
    position = 0
    while position + 12 <= len(notes):
        name_bytes, value_bytes, kind = struct.unpack_from("<III", notes, position)
        name_at = position + 12
        value_at = name_at + (name_bytes + 3 & ~3)
        if value_at + value_bytes > len(notes):
            return
        if notes[name_at : name_at + name_bytes] == b"Xen\0":
            yield kind, notes[value_at : value_at + value_bytes]
        position = value_at + (value_bytes + 3 & ~3)
