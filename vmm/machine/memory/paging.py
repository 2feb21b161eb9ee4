"""Walking a guest's page tables: from linear to guest-physical addresses, as the CPU would for supervisor access.

Source: AMD64 Architecture Programmer's Manual, volume 2, chapter 5.
"""

from collections.abc import Iterator
from typing import Protocol

CR0_WP, CR0_PG = 1 << 16, 1 << 31
CR4_PSE, CR4_PAE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
EFER_LMA = 1 << 10
PRESENT, WRITABLE, LARGE = 1, 2, 1 << 7
FRAME_MASK = 0x000F_FFFF_FFFF_F000
PAGE_BYTES = 4096


class PageFault(Exception):
    """Nothing is mapped at a linear address, or not writably."""


class PhysicalMemory(Protocol):
    """Where page tables are read from."""

    def read(self, gpa: int, size_bytes: int) -> bytes:
        """Guest-physical bytes."""
        ...


class ControlRegisters(Protocol):
    """The registers that choose the paging mode; `struct kvm_sregs` has them."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


def canonical(address: int, bits: int) -> bool:
    """Whether the upper bits of a 64-bit address all repeat bit `bits - 1`."""
    top = address >> (bits - 1)
    return top in (0, (1 << (65 - bits)) - 1)


def translate(memory: PhysicalMemory, registers: ControlRegisters, address: int, *, write: bool) -> tuple[int, int]:
    """The guest-physical address behind a linear one, and the bytes from there to the end of its page.  PageFault."""
    if not registers.cr0 & CR0_PG:
        if address >> 32:
            raise PageFault(address)
        return address, PAGE_BYTES - address % PAGE_BYTES
    if registers.efer & EFER_LMA:
        levels = 5 if registers.cr4 & CR4_LA57 else 4
        if not canonical(address, 9 * levels + 12):
            raise PageFault(address)
        table = registers.cr3 & FRAME_MASK
    else:
        if address >> 32:
            raise PageFault(address)
        if not registers.cr4 & CR4_PAE:
            return _translate_two_level(memory, registers, address, write=write)
        top = _entry(memory, (registers.cr3 & 0xFFFF_FFE0) + (address >> 30) * 8, 8)
        if not top & PRESENT:
            raise PageFault(address)
        levels, table = 2, top & FRAME_MASK
    writable = True
    for level in range(levels, 0, -1):
        shift = 3 + 9 * level
        entry = _entry(memory, table + (address >> shift & 0x1FF) * 8, 8)
        if not entry & PRESENT:
            raise PageFault(address)
        writable = writable and bool(entry & WRITABLE)
        if level == 1 or (entry & LARGE and level in (2, 3)):
            if write and not writable and registers.cr0 & CR0_WP:
                raise PageFault(address)
            offset = address & (1 << shift) - 1
            return (entry & FRAME_MASK & -(1 << shift)) | offset, PAGE_BYTES - offset % PAGE_BYTES
        table = entry & FRAME_MASK
    raise AssertionError("unreachable: level 1 always returns")


def _translate_two_level(
    memory: PhysicalMemory, registers: ControlRegisters, address: int, *, write: bool
) -> tuple[int, int]:
    directory = _entry(memory, (registers.cr3 & 0xFFFF_F000) + (address >> 22) * 4, 4)
    if not directory & PRESENT:
        raise PageFault(address)
    if directory & LARGE and registers.cr4 & CR4_PSE:
        entry, frame = directory, directory & 0xFFC0_0000 | (directory >> 13 & 0xFF) << 32
        offset = address & 0x3F_FFFF
    else:
        entry = _entry(memory, (directory & 0xFFFF_F000) + (address >> 12 & 0x3FF) * 4, 4)
        if not entry & PRESENT:
            raise PageFault(address)
        frame, offset = entry & 0xFFFF_F000, address & 0xFFF
    if write and not entry & directory & WRITABLE and registers.cr0 & CR0_WP:
        raise PageFault(address)
    return frame | offset, PAGE_BYTES - offset % PAGE_BYTES


def _entry(memory: PhysicalMemory, gpa: int, size_bytes: int) -> int:
    return int.from_bytes(memory.read(gpa, size_bytes), "little")


def pieces(
    memory: PhysicalMemory, registers: ControlRegisters, address: int, size_bytes: int, *, write: bool
) -> Iterator[tuple[int, int]]:
    """The guest-physical pieces (start, length) behind a stretch of linear addresses.  PageFault on the way."""
    wraps = 1 << (64 if registers.efer & EFER_LMA else 32)
    while size_bytes > 0:
        if address >= wraps:
            raise PageFault(address)
        gpa, room = translate(memory, registers, address, write=write)
        length = min(room, size_bytes)
        yield gpa, length
        address, size_bytes = address + length, size_bytes - length
