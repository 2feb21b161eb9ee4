"""Images made by hand for the loader's tests."""

import struct
from typing import NamedTuple


class Load(NamedTuple):
    """A PT_LOAD segment to put into an image."""

    gpa: int
    content: bytes
    memory_bytes: int = 0
    flags: int = 5


def note(entry: int, *, name: bytes = b"Xen\0", kind: int = 18) -> bytes:
    return struct.pack("<III", len(name), 4, kind) + name.ljust(-(-len(name) // 4) * 4, b"\0") + struct.pack("<I", entry)


def elf(loads: list[Load], notes: bytes | None = None, *, machine: int = 62, bits: int = 64) -> bytes:
    """An ELF file with these segments and, unless None, a PT_NOTE segment."""
    programs = [(1, load.flags, load.gpa, load.content, load.memory_bytes or len(load.content)) for load in loads]
    if notes is not None:
        programs.append((4, 4, 0, notes, len(notes)))
    head, row = (64, 56) if bits == 64 else (52, 32)
    offset = head + row * len(programs)
    table, body = b"", b""
    for kind, flags, gpa, content, memory in programs:
        at = offset + len(body)
        if bits == 64:
            table += struct.pack("<IIQQQQQQ", kind, flags, at, gpa, gpa, len(content), memory, 0x1000)
        else:
            table += struct.pack("<IIIIIIII", kind, at, gpa, gpa, len(content), memory, flags, 0x1000)
        body += content
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    word = "Q" if bits == 64 else "I"
    rest = struct.pack(f"<HHI{word}{word}{word}IHHHHHH", 2, machine, 1, 0, head, 0, 0, head, row, len(programs), 0, 0, 0)
    return ident + rest + table + body


def good(entry: int = 0x100000, bits: int = 64) -> bytes:
    """A small image that loads."""
    return elf([Load(0x100000, b"\xf4" * 64, 4096)], note(entry), bits=bits, machine=62 if bits == 64 else 3)


def bzimage(payload: bytes, *, protocol: int = 0x20F, length: int | None = None) -> bytes:
    """A bzImage around a compressed kernel."""
    sector = bytearray(1024)
    sector[0x1F1] = 1
    sector[0x1FE:0x200] = b"\x55\xaa"
    sector[0x202:0x206] = b"HdrS"
    sector[0x206:0x208] = protocol.to_bytes(2, "little")
    sector[0x248:0x24C] = (16).to_bytes(4, "little")
    sector[0x24C:0x250] = (len(payload) if length is None else length).to_bytes(4, "little")
    return bytes(sector) + bytes(16) + payload
