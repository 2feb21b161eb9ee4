"""C structures declared once, as annotated classes; the layout follows the x86 ABIs, 64-bit and 32-bit.

    class EvtchnStatus(Struct, c_name="evtchn_status", header="event_channel.h"):
        dom: U16
        port: U32

A test compiles every declaration's public header and compares sizes and offsets in both modes.
"""

import struct
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Self


class Abi(IntEnum):
    """Which ABI a caller has; the value is the size of its `unsigned long`, bytes."""

    X86_32 = 4
    X86_64 = 8


I8 = Annotated[int, "b"]
U8 = Annotated[int, "B"]
I16 = Annotated[int, "h"]
U16 = Annotated[int, "H"]
I32 = Annotated[int, "i"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]  # aligned to 4 in a 32-bit structure
ALIGNED_U64 = Annotated[int, "q"]  # uint64_aligned_t: aligned to 8 in both
ULONG = Annotated[int, "L"]  # unsigned long, xen_ulong_t, xen_pfn_t
HANDLE = Annotated[int, "P"]  # XEN_GUEST_HANDLE: an address in the caller's own space
END_OF_INNER = Annotated[bytes, "0s"]
"""No field: where a structure within the structure ends, which `unsigned long` aligns."""
BYTES6 = Annotated[bytes, "6s"]
BYTES7 = Annotated[bytes, "7s"]
BYTES12 = Annotated[bytes, "12s"]
BYTES16 = Annotated[bytes, "16s"]
BYTES28 = Annotated[bytes, "28s"]
BYTES32 = Annotated[bytes, "32s"]
BYTES120 = Annotated[bytes, "120s"]
BYTES128 = Annotated[bytes, "128s"]
HANDLE_64 = ALIGNED_U64  # XEN_GUEST_HANDLE_64: the same in both ABIs

_SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "Q": 8, "q": 8}
_CODES = {"q": "Q"}


class _Layout:
    """Where the fields of one structure stand in one ABI."""

    def __init__(self, fields: dict[str, str], abi: Abi) -> None:
        position, widest, codes = 0, 1, ["<"]
        self.offsets: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.holes: list[slice] = []
        """Padding."""
        for name, code in fields.items():
            if code == "0s":
                size, align = 0, int(abi)
            elif code.endswith("s"):
                size, align = int(code[:-1]), 1
            elif code in "LP":
                size = align = int(abi)
                code = "Q" if abi is Abi.X86_64 else "I"
            else:
                size = _SIZES[code]
                align = 4 if code == "Q" and abi is Abi.X86_32 else size
                code = _CODES.get(code, code)
            padding = -position % align
            codes.append(f"{padding}x{code}" if padding else code)
            if padding:
                self.holes.append(slice(position, position + padding))
            self.offsets[name] = position + padding
            self.sizes[name] = size
            position += padding + size
            widest = max(widest, align)
        if -position % widest:
            codes.append(f"{-position % widest}x")
            self.holes.append(slice(position, position + -position % widest))
        self.codec = struct.Struct("".join(codes))
        self.size_bytes = self.codec.size


class Struct:
    """Base of all declarations: `unpack` and `pack` for either ABI, equality by value."""

    C_NAME: ClassVar[str]
    HEADER: ClassVar[str]
    FIELDS: ClassVar[tuple[str, ...]]
    ZEROS: ClassVar[dict[str, int | bytes]]
    LAYOUTS: ClassVar[dict[Abi, _Layout]]
    DECLARED: ClassVar[list[type["Struct"]]] = []

    def __init_subclass__(cls, *, c_name: str, header: str) -> None:
        fields = {name: kind.__metadata__[0] for name, kind in cls.__annotations__.items()}
        cls.C_NAME, cls.HEADER, cls.FIELDS = c_name, header, tuple(fields)
        cls.ZEROS = {name: b"" if code.endswith("s") else 0 for name, code in fields.items()}
        cls.LAYOUTS = {abi: _Layout(fields, abi) for abi in Abi}
        Struct.DECLARED.append(cls)

    def __init__(self, **values: Any) -> None:
        for name in self.FIELDS:
            setattr(self, name, values.pop(name, self.ZEROS[name]))
        if values:
            raise TypeError(f"{self.C_NAME} has no field {next(iter(values))}")

    @classmethod
    def sizeof(cls, abi: Abi = Abi.X86_64) -> int:
        """Bytes that one takes."""
        return cls.LAYOUTS[abi].size_bytes

    @classmethod
    def offsetof(cls, field: str, abi: Abi = Abi.X86_64) -> int:
        """Where a field starts, bytes."""
        return cls.LAYOUTS[abi].offsets[field]

    @classmethod
    def sizeof_field(cls, field: str, abi: Abi = Abi.X86_64) -> int:
        """Bytes that a field takes."""
        return cls.LAYOUTS[abi].sizes[field]

    @classmethod
    def unpack(cls, data: bytes | memoryview, abi: Abi = Abi.X86_64) -> Self:
        """From the bytes of one; `struct.error` where their number is wrong."""
        made = cls.__new__(cls)
        for name, value in zip(cls.FIELDS, cls.LAYOUTS[abi].codec.unpack(data), strict=True):
            setattr(made, name, value)
        return made

    def pack(self, abi: Abi = Abi.X86_64) -> bytes:
        """The bytes of this one; `struct.error` where a value does not fit its field."""
        return self.LAYOUTS[abi].codec.pack(*(getattr(self, name) for name in self.FIELDS))

    def pack_over(self, data: bytes, abi: Abi = Abi.X86_64) -> bytes:
        """The bytes of this one where `data` was, whose padding stays."""
        packed = self.pack(abi)
        holes = self.LAYOUTS[abi].holes
        if not holes:
            return packed
        kept = bytearray(packed)
        for hole in holes:
            kept[hole] = data[hole]
        return bytes(kept)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.C_NAME}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.FIELDS)})"
