"""ACPI Machine Language: encoding the few objects that pyvmm's tables are made of.

Source: ACPI specification 6.4, chapters 6.4 (resources) and 20 (encoding).
"""

import struct

END_OF_RESOURCES = b"\x79\x00"
_MEMORY, _IO, _BUS = range(3)
_FIXED = 0x0C  # of an address space descriptor: minimum and maximum are fixed
_ENTIRE_IO_RANGE, _READ_WRITE = 3, 1


def _package_length(content: bytes) -> bytes:
    # PkgLength counts its own bytes: 20.2.4 of the specification.
    for following in range(4):
        total = len(content) + 1 + following
        if following == 0 and total < 1 << 6:
            return bytes([total])
        if following and total < 1 << 4 + 8 * following:
            return bytes([following << 6 | total & 15, *(total >> 4).to_bytes(following, "little")])
    raise ValueError(f"{len(content)} bytes are too many for one AML object")


def _sized(opcode: bytes, content: bytes) -> bytes:
    return opcode + _package_length(content) + content


def byte(value: int) -> bytes:
    """ByteConst."""
    return bytes([0x0A, value])


def dword(value: int) -> bytes:
    """DWordConst."""
    return b"\x0c" + value.to_bytes(4, "little")


def eisa_id(text: str) -> bytes:
    """A device's id like PNP0A08, as EISAID packs it."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + packed.to_bytes(4, "big")


def name(path: bytes, value: bytes) -> bytes:
    """Name (path, value)"""
    return b"\x08" + path + value


def package(*elements: bytes) -> bytes:
    """Package () {...}"""
    return _sized(b"\x12", bytes([len(elements)]) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """Buffer () {...}"""
    size = byte(len(data)) if len(data) < 256 else dword(len(data))
    return _sized(b"\x11", size + data)


def scope(path: bytes, *objects: bytes) -> bytes:
    """Scope (path) {...}"""
    return _sized(b"\x10", path + b"".join(objects))


def device(path: bytes, *objects: bytes) -> bytes:
    """Device (path) {...}"""
    return _sized(b"\x5b\x82", path + b"".join(objects))


def processor(path: bytes, uid: int, block: int, *objects: bytes) -> bytes:
    """Processor (path, uid, block, 6) {...}"""
    return _sized(b"\x5b\x83", path + struct.pack("<BIB", uid, block, 6) + b"".join(objects))


# ------------------------------------------------------------------------------------------- resources


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {...}"""
    return buffer(b"".join(descriptors) + END_OF_RESOURCES)


def io_ports(first: int, count: int) -> bytes:
    """IO (Decode16, first, first, 1, count)"""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def interrupt(line: int) -> bytes:
    """IRQNoFlags () {line}"""
    return struct.pack("<BH", 0x22, 1 << line)


def fixed_memory(start: int, size_bytes: int) -> bytes:
    """Memory32Fixed (ReadWrite, start, size)"""
    return struct.pack("<BHBII", 0x86, 9, 1, start, size_bytes)


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber (...)"""
    return _word_range(_BUS, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """WordIO (ResourceProducer, ...)"""
    return _word_range(_IO, _ENTIRE_IO_RANGE, first, last)


def _word_range(kind: int, flags: int, first: int, last: int) -> bytes:
    return struct.pack("<BHBBBHHHHH", 0x88, 13, kind, _FIXED, flags, 0, first, last, 0, last - first + 1)


def memory_window(first: int, last: int) -> bytes:
    """DWordMemory (ResourceProducer, ..., NonCacheable, ReadWrite, ...)"""
    return struct.pack("<BHBBBIIIII", 0x87, 23, _MEMORY, _FIXED, _READ_WRITE, 0, first, last, 0, last - first + 1)
