"""Host memory that a guest may be given: mappings whose address KVM can be told, and atomic access to them.

Pages that appear in two places (Xen's own pages, other domains') live in a `PageFile`, a memfd; mapping one over part of
a `HostMemory` replaces what the guest sees there while KVM's memory slot stays.  Where nothing is mapped over it a
`HostMemory` is its own file, or anonymous, and zero until touched: no access of the VMM's can fault, whatever a guest
removes meanwhile.
"""

import os
from collections.abc import Callable, Sequence

from vmm.kvm._native import ffi, lib
from vmm.kvm.errors import KvmError, fail

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20
_READ_WRITE = lib.PROT_READ | lib.PROT_WRITE
_ANONYMOUS = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
_FAILED = 2 ** (8 * ffi.sizeof("uintptr_t")) - 1

fetch_or_64: Callable[[int, int], int] = lib.pyvmm_fetch_or_64
"""Set bits of the aligned 64-bit word at an address, in one locked instruction; the word before."""

fetch_and_64: Callable[[int, int], int] = lib.pyvmm_fetch_and_64
"""Keep only these bits of it, likewise; the word before."""

exchange_32: Callable[[int, int, int], int] = lib.pyvmm_exchange_32
"""Write an aligned 32-bit word if it holds the second value, in one locked instruction; the word before."""


def mark_entries(address: int, numbers: Sequence[int], usual: int, ignored: int, bits: int) -> list[int]:
    """Of many entries of two 32-bit words: set bits in the first, if it is the usual but for the ignored bits, by a locked
    instruction each.  The second words, 0xffffffff for the others."""
    found = ffi.new("uint32_t[]", len(numbers))
    lib.pyvmm_mark_entries(address, numbers, len(numbers), usual, ignored, bits, found)
    marked: list[int] = ffi.unpack(found, len(numbers))
    return marked


def unmark_entries(address: int, numbers: Sequence[int], bits: int) -> None:
    """Clear bits in the first word of many of them."""
    lib.pyvmm_unmark_entries(address, numbers, len(numbers), bits)


def _map(address: int, size_bytes: int, flags: int, fd: int, offset_bytes: int) -> int:
    pointer = lib.mmap(ffi.cast("void *", address), size_bytes, _READ_WRITE, flags, fd, offset_bytes)
    result = int(ffi.cast("uintptr_t", pointer))
    if result == _FAILED:
        fail("mmap")
    return result


def _map_aligned(size_bytes: int) -> int:
    """Anonymous memory from a huge page's start on: KVM maps huge pages where both addresses agree in their lower bits.

    Kernels before 6.7 put a mapping anywhere.
    """
    address = _map(0, size_bytes + HUGE_PAGE_BYTES, _ANONYMOUS, -1, 0)
    start = -(-address // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    for rest, rest_bytes in ((address, start - address), (start + size_bytes, address + HUGE_PAGE_BYTES - start)):
        if rest_bytes:
            lib.munmap(ffi.cast("void *", rest), rest_bytes)
    return start


class HostMemory:
    """One mapping of the host, released by `close`.

    `address` is its host virtual address, `view` a writable memoryview of all of it.
    """

    def __init__(self, size_bytes: int, *, huge_pages: bool = False, file: "PageFile | None" = None) -> None:
        self.file = file
        self.address = _map_aligned(size_bytes) if huge_pages else _map(0, size_bytes, _ANONYMOUS, -1, 0)
        if file is not None:
            _map(self.address, size_bytes, lib.MAP_SHARED | lib.MAP_FIXED, file.fd, 0)
        self.size_bytes = size_bytes
        pointer = ffi.cast("char *", self.address)
        if huge_pages:
            lib.madvise(pointer, size_bytes, lib.MADV_HUGEPAGE)  # advice: a kernel without THP refuses it
        self.view = memoryview(ffi.buffer(pointer, size_bytes)).cast("B")

    def show(self, offset_bytes: int, file: "PageFile", page: int, *, writable: bool = True) -> None:
        """Put a page of `file` where the page at `offset_bytes` was; an anonymous one is given back to the host.

        Where it is not to be written, a write makes a copy, for this place alone: it must not fault.
        """
        flags = (lib.MAP_SHARED if writable else lib.MAP_PRIVATE) | lib.MAP_FIXED
        _map(self.address + offset_bytes, PAGE_BYTES, flags, file.fd, page * PAGE_BYTES)

    def blank(self, offset_bytes: int, size_bytes: int) -> None:
        """Put pages of its own there again: anonymous ones are new and zero, a file's are as they were left."""
        if self.file is None:
            _map(self.address + offset_bytes, size_bytes, _ANONYMOUS | lib.MAP_FIXED, -1, 0)
        else:
            flags = lib.MAP_SHARED | lib.MAP_FIXED
            _map(self.address + offset_bytes, size_bytes, flags, self.file.fd, offset_bytes)

    def discard(self, offset_bytes: int, size_bytes: int) -> None:
        """Give its own pages back to the host, which have to be there; they read as zeros until written again."""
        advice = lib.MADV_DONTNEED if self.file is None else lib.MADV_REMOVE
        if lib.madvise(ffi.cast("char *", self.address + offset_bytes), size_bytes, advice) < 0:
            fail("madvise")

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Copy bytes there.  Unlike an assignment to `view` it lets other Python threads run: this is for many bytes."""
        if not 0 <= offset_bytes <= self.size_bytes - len(data):
            raise ValueError(f"{len(data)} bytes at {offset_bytes:#x} are beyond the mapping's {self.size_bytes:#x}")
        lib.memcpy(ffi.cast("void *", self.address + offset_bytes), ffi.from_buffer(data), len(data))

    def take(self, offset_bytes: int, other: "HostMemory", start_bytes: int, size_bytes: int) -> None:
        """Bytes of `other` come here.  Whole huge pages are moved where both are anonymous and the places agree in their
        lower bits: no byte is copied, and `other` then reads as zeros there.  The rest is copied."""
        source, target = other.address + start_bytes, self.address + offset_bytes
        head, moved = min(-source % HUGE_PAGE_BYTES, size_bytes), 0
        if self.file is None and other.file is None and (target - source) % HUGE_PAGE_BYTES == 0:
            moved = (size_bytes - head) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if moved and not self._move(offset_bytes + head, source + head, moved):
            moved = 0
        for first, last in ((0, head), (head + moved, size_bytes)):
            self.view[offset_bytes + first : offset_bytes + last] = other.view[start_bytes + first : start_bytes + last]

    def _move(self, offset_bytes: int, address: int, size_bytes: int) -> bool:
        """Have the pages of another mapping; False where the kernel (before 5.7, say) does not move them."""
        target = ffi.cast("void *", self.address + offset_bytes)
        flags = lib.MREMAP_MAYMOVE | lib.MREMAP_FIXED | lib.MREMAP_DONTUNMAP
        result = lib.mremap(ffi.cast("void *", address), size_bytes, size_bytes, flags, target)
        if result == target:
            return True
        self.blank(offset_bytes, size_bytes)  # what was there may be gone
        return False

    def close(self) -> None:
        """Unmap; no guest may still have this memory in a slot."""
        if self.size_bytes:
            self.view = memoryview(b"")
            lib.munmap(ffi.cast("void *", self.address), self.size_bytes)
            self.size_bytes = 0


class PageFile:
    """A memfd of a fixed number of pages, zero until written."""

    def __init__(self, name: str, pages: int) -> None:
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(self.fd, pages * PAGE_BYTES)
        except OSError as error:
            raise KvmError("memfd_create", error.errno or 0) from None
        self.pages = pages

    def close(self) -> None:
        """The pages live on where they are mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
