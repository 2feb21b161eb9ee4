"""Laying a PVH guest out in its memory: segments, modules, command line, start_info.

Source: xen/docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h.
"""

import itertools
from typing import NamedTuple, Protocol

from vmm.boot.elf import ElfImage
from vmm.boot.errors import ImageError
from vmm.boot.unpacked import Unpacked
from vmm.kvm import HostMemory
from vmm.xenabi.constants import E820, PAGE_BYTES
from vmm.xenabi.structs import HvmMemmapEntry, HvmModlistEntry, HvmStartInfo
from vmm.xenabi.values import MemmapEntry

START_INFO_MAGIC = 0x336EC578
INITIAL_DOMAIN_FLAGS = 3  # xen.h: SIF_PRIVILEGED, SIF_INITDOMAIN
MAX_COMMAND_LINE_BYTES = 4096
LINUX_COMMAND_LINE_BYTES = 2048


class Memory(Protocol):
    """Guest memory, as a loader needs it."""

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """To guest-physical memory."""
        ...

    def take(self, gpa: int, other: HostMemory, start_bytes: int, size_bytes: int) -> None:
        """Bytes of the host's memory come here, as pages where they can."""
        ...

    def map(self) -> list[MemmapEntry]:
        """The memory map that the guest is told."""
        ...

    @property
    def low_ram_bytes(self) -> int:
        """RAM below 4 GiB, bytes."""
        ...


class Module(NamedTuple):
    """A file that the guest is given: the initrd is the first."""

    name: str
    data: memoryview
    command_line: str = ""


class Entry(NamedTuple):
    """How the guest starts: 32-bit flat protected mode at `eip`, with start_info's address in EBX."""

    eip: int
    ebx: int


def _page_up(value: int) -> int:
    return -(-value // PAGE_BYTES) * PAGE_BYTES


class _Placer:
    """Hands out low RAM above the image, upwards."""

    def __init__(self, start: int, end: int) -> None:
        self._next = _page_up(start)
        self._end = end

    def take(self, size_bytes: int, what: str) -> int:
        start = self._next
        if start + size_bytes > self._end:
            raise ImageError(
                f"{what} ({size_bytes >> 10} KiB) does not fit into the guest's memory below {self._end:#x} behind "
                "the image; give the guest more with --memory"
            )
        self._next = _page_up(start + size_bytes)
        return start


def load(memory: Memory, image: ElfImage, command_line: str, modules: list[Module], rsdp: int, flags: int = 0) -> Entry:
    """Put everything into its place; an image is used up by it.  ImageError where something does not fit."""
    usable = [entry for entry in memory.map() if entry.kind == E820.RAM]
    for segment in image.segments:
        if not any(entry.start <= segment.gpa and segment.end <= entry.start + entry.size_bytes for entry in usable):
            raise ImageError(
                f"{image.name} wants {segment.gpa:#x}-{segment.end:#x}, which is not RAM of this guest; "
                "give the guest more with --memory"
            )
    _put_segments(memory, image)
    image.close()
    low_end = max((segment.end for segment in image.segments if segment.end <= memory.low_ram_bytes), default=0)
    placer = _Placer(max(low_end, 0x100000), memory.low_ram_bytes)
    # Modules last: a 32-bit Linux reads the rest through page tables that reach some 2 MiB beyond itself.
    text_gpa = _put_text(memory, placer, command_line, "the kernel command line")
    texts = [
        _put_text(memory, placer, module.command_line, f"the command line of {module.name}") if module.command_line else 0
        for module in modules
    ]
    table = b"".join(
        HvmMemmapEntry(addr=entry.start, size=entry.size_bytes, type=entry.kind).pack() for entry in memory.map()
    )
    list_bytes = len(modules) * HvmModlistEntry.sizeof()
    info_gpa = placer.take(HvmStartInfo.sizeof() + list_bytes + len(table), "start_info")
    list_gpa = info_gpa + HvmStartInfo.sizeof()
    info = HvmStartInfo(
        magic=START_INFO_MAGIC,
        version=1,
        flags=flags,
        nr_modules=len(modules),
        modlist_paddr=list_gpa if modules else 0,
        cmdline_paddr=text_gpa,
        rsdp_paddr=rsdp,
        memmap_paddr=list_gpa + list_bytes,
        memmap_entries=len(memory.map()),
    )
    listed = b""
    for module, module_text_gpa in zip(modules, texts, strict=True):
        gpa = placer.take(len(module.data), module.name)
        memory.write(gpa, module.data)
        listed += HvmModlistEntry(paddr=gpa, size=len(module.data), cmdline_paddr=module_text_gpa).pack()
    memory.write(info_gpa, info.pack() + listed + table)
    return Entry(image.entry, info_gpa)


def _put_segments(memory: Memory, image: ElfImage) -> None:
    if not isinstance(image.data, Unpacked):
        with memoryview(image.data) as whole:
            for segment in image.segments:
                memory.write(segment.gpa, whole[segment.file_offset : segment.file_offset + segment.file_bytes])
        return
    unpacked = image.data.memory
    by_offset = sorted(image.segments, key=lambda segment: segment.file_offset)
    overlap = any(one.file_offset + one.file_bytes > two.file_offset for one, two in itertools.pairwise(by_offset))
    for segment in image.segments:
        start, size = segment.file_offset, segment.file_bytes
        if overlap:  # what went to one segment would be missing in another
            memory.write(segment.gpa, unpacked.view[start : start + size])
        else:
            memory.take(segment.gpa, unpacked, start, size)


def _put_text(memory: Memory, placer: _Placer, text: str, what: str) -> int:
    try:
        data = text.encode() + b"\0"
    except UnicodeEncodeError:
        raise ImageError(f"{what} is not valid text") from None
    if b"\0" in data[:-1]:
        raise ImageError(f"{what} holds a zero byte")
    if len(data) > MAX_COMMAND_LINE_BYTES:
        raise ImageError(f"{what} is {len(data) - 1} bytes long; at most {MAX_COMMAND_LINE_BYTES - 1} fit")
    gpa = placer.take(len(data), what)
    memory.write(gpa, data)
    return gpa
