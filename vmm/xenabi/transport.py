"""Getting hypercalls out of a guest: the hypercall page, and the sites in an image that trap by themselves.

Three transports.  `kvm-xen`: KVM hands every hypercall on.  `page`: the guest asks for a page of code by an MSR and calls
into it; each entry is a port write.  `patch`: the guest executes vmcall or vmmcall itself, which KVM would answer in the
kernel, so those instructions are replaced, in guest memory only, by the same port write.
"""

from enum import StrEnum
from typing import Protocol

from vmm.xenabi.constants import PAGE_BYTES, Hypercall

PORT = 0xE6
"""The one-byte port that stands for a hypercall; no PC device has it."""

ENTRY_BYTES = 32
INSTRUCTION_BYTES = 2
"""Length of the port write in all its uses, bytes."""

_OUT_AL = bytes([0xE6, PORT])
_OUT_EAX = bytes([0xE7, PORT])
_VMCALL = b"\x0f\x01\xc1"
_VMMCALL = b"\x0f\x01\xd9"
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_FUNCTION_ALIGNMENT = 16
_MAX_FUNCTION_BYTES = 32


class Code(Protocol):
    """Bytes to look through: an image's."""

    def __getitem__(self, part: slice, /) -> bytes: ...
    def find(self, wanted: bytes, start: int, end: int, /) -> int:
        """Where bytes stand, as bytes.find has it."""
        ...


class Transport(StrEnum):
    """How a domain's hypercalls reach pyvmm."""

    KVM_XEN = "kvm-xen"
    PAGE = "page"
    PATCH = "patch"


def hypercall_page() -> bytes:
    """The page behind the hypercall MSR: entry n at 32 n is `mov $n,%eax; out; ret`, but iret, which is not for HVM."""
    page = bytearray(b"\xcc" * PAGE_BYTES)
    for number in range(PAGE_BYTES // ENTRY_BYTES):
        code = b"\xb8" + number.to_bytes(4, "little") + _OUT_AL + b"\xc3"
        if number == Hypercall.iret:
            code = b"\x0f\x0b"
        page[number * ENTRY_BYTES : number * ENTRY_BYTES + len(code)] = code
    return bytes(page)


def patch_for(instruction: bytes) -> bytes:
    """What replaces vmcall or vmmcall: as long, and with the same registers."""
    assert instruction in (_VMCALL, _VMMCALL)
    return _OUT_EAX + b"\x90"


def is_hypercall_instruction(code: bytes) -> bool:
    """Whether these bytes start with vmcall or vmmcall."""
    return code[:3] in (_VMCALL, _VMMCALL)


def _ends_function(code: bytes) -> bool:
    """A return, or a jump to a return thunk."""
    return code[:1] in (b"\xc3", b"\xe9", b"\xcc") or code[:2] in (b"\xf3\xc3", b"\x2e\xe9")


def _function_at(code: Code, at: int, instruction: bytes) -> int | None:
    """Where `instruction` stands in a function at `at` that consists of it, an optional endbr64 and a return."""
    body = at + (len(_ENDBR64) if code[at : at + 4] == _ENDBR64 else 0)
    if code[body : body + 3] != instruction or not _ends_function(code[body + 3 : body + 5]):
        return None
    return body


_PAIRS_32 = (_VMMCALL + b"\xc3" + _VMCALL + b"\xc3", _VMCALL + b"\xc3" + _VMMCALL + b"\xc3")


def find_hypercall_pairs_32(code: Code, start: int, end: int) -> list[tuple[int, int]]:
    """The same in 32-bit code, whose functions are not aligned: the two stand side by side, 4 bytes apart."""
    pairs = []
    for shape in _PAIRS_32:
        position = code.find(shape, start, end)
        while position >= 0:
            first, second = position, position + 4
            pairs.append((first, second) if shape.startswith(_VMMCALL) else (second, first))
            position = code.find(shape, position + 1, end)
    return pairs


def find_hypercall_pairs(code: Code, start: int, end: int, address: int) -> list[tuple[int, int]]:
    """Pairs (vmmcall, vmcall) of offsets in `code` between `start` and `end`; `start` is loaded at `address`.

    Linux since late 2024 has one such pair: two functions beside each other, each aligned to 16 bytes, with nothing but
    the instruction and a return (arch/x86/xen/xen-head.S).  The order is either.
    """
    pairs = []
    position = code.find(_VMCALL, start, end)
    while position >= 0:
        for lead in (0, len(_ENDBR64)):
            function = position - lead
            aligned = (address + function - start) % _FUNCTION_ALIGNMENT == 0
            if function < start or not aligned or _function_at(code, function, _VMCALL) != position:
                continue
            for distance in range(-_MAX_FUNCTION_BYTES, _MAX_FUNCTION_BYTES + 1, _FUNCTION_ALIGNMENT):
                neighbour = function + distance
                if distance == 0 or neighbour < start:
                    continue
                other = _function_at(code, neighbour, _VMMCALL)
                if other is not None and other < end:
                    pairs.append((other, position))
                    break
        position = code.find(_VMCALL, position + 1, end)
    return pairs
