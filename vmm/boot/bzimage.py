"""Taking the ELF kernel out of a bzImage.  Source: Linux Documentation/arch/x86/boot.rst."""

from mmap import mmap

from vmm.boot.errors import ImageError
from vmm.boot.unpacked import Unpacked

MAGIC_OFFSET, MAGIC = 0x202, b"HdrS"
PAYLOAD_PROTOCOL = 0x0208
"""The first boot protocol that says where the payload is."""


def is_bzimage(data: bytes | mmap) -> bool:
    """Whether a file has the boot sector of a Linux kernel."""
    return data[0x1FE:0x200] == b"\x55\xaa" and data[MAGIC_OFFSET : MAGIC_OFFSET + 4] == MAGIC


def payload(data: bytes | mmap, name: str) -> Unpacked:
    """The plain ELF inside; ImageError where it is not there or cannot be unpacked."""

    from vmm.boot.decompress import Corrupt, decompress  # its codecs are not for guests that need none

    def field(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    protocol = field(0x206, 2)
    if protocol < PAYLOAD_PROTOCOL:
        raise ImageError(
            f"{name} is a bzImage of boot protocol {protocol >> 8}.{protocol & 0xFF:02}, which does not say where its "
            "kernel is (Linux before 2.6.26); give the vmlinux instead"
        )
    start = (1 + (field(0x1F1, 1) or 4)) * 512 + field(0x248, 4)
    length = field(0x24C, 4)
    if not length or start + length > len(data):
        raise ImageError(f"{name} is a bzImage that ends before its payload does: it is truncated")
    try:
        with memoryview(data) as whole:
            return decompress(whole[start : start + length])
    except Corrupt as error:
        raise ImageError(f"{name}: the kernel inside cannot be unpacked: {error}") from None
