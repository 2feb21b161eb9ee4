"""The registers as GDB sees them: the target description, and their values in its order.

Source: Debugging with GDB, appendix G.5.16 (i386 features).
"""

from typing import Any, NamedTuple


class Register(NamedTuple):
    """One register: its size, and where its value is (None: not told)."""

    name: str
    bits: int
    kind: str = "int"
    regs: str | None = None
    """In struct kvm_regs."""
    sregs: str | None = None
    """In struct kvm_sregs; a segment's selector, or `X_base` of one."""


_GENERAL_64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_GENERAL_32 = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_POINTERS = ("bp", "sp")
_REST = [
    Register("eflags", 32, "int32", regs="rflags"),
    *(Register(name, 32, "int32", sregs=name) for name in ("cs", "ss", "ds", "es", "fs", "gs")),
    *(Register(f"st{n}", 80, "i387_ext") for n in range(8)),
    *(Register(name, 32) for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")),
]
_FEATURES = {
    64: {
        "org.gnu.gdb.i386.core": [
            *(Register(name, 64, "data_ptr" if name[1:] in _POINTERS else "int64", regs=name) for name in _GENERAL_64),
            Register("rip", 64, "code_ptr", regs="rip"),
            *_REST,
        ],
        "org.gnu.gdb.i386.segments": [Register(f"{name}_base", 64, "int", sregs=f"{name}_base") for name in ("fs", "gs")],
        "org.pyvmm.control": [Register(name, 64, sregs=name) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")],
    },
    32: {
        "org.gnu.gdb.i386.core": [
            *(
                Register(f"e{name}", 32, "data_ptr" if name in _POINTERS else "int32", regs=f"r{name}")
                for name in _GENERAL_32
            ),
            Register("eip", 32, "code_ptr", regs="rip"),
            *_REST,
        ],
        "org.pyvmm.control": [Register(name, 32, sregs=name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")],
    },
}
_ARCHITECTURES = {64: "i386:x86-64", 32: "i386"}


class Layout:
    """The registers of a kernel of 32 or 64 bits: in GDB's order, and described for it.

    It holds for a session, whatever mode a vCPU is in: GDB takes no other description once it has one.
    """

    def __init__(self, bits: int) -> None:
        self._features = _FEATURES[bits]
        self._architecture = _ARCHITECTURES[bits]
        self.registers = [register for registers in self._features.values() for register in registers]

    def xml(self) -> bytes:
        """The target description."""
        lines = ['<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">']
        lines.append(f"<architecture>{self._architecture}</architecture>")
        number = 0
        for feature, registers in self._features.items():
            lines.append(f'<feature name="{feature}">')
            for register in registers:
                lines.append(
                    f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}" regnum="{number}"/>'
                )
                number += 1
            lines.append("</feature>")
        return "\n".join([*lines, "</target>"]).encode()


def read(register: Register, regs: Any, sregs: Any) -> str:
    """A register's value as GDB writes it; `x` where it is not known."""
    digits = register.bits // 4
    if register.regs is not None:
        value = getattr(regs, register.regs)
    elif register.sregs is None:
        return "x" * digits
    elif register.sregs.endswith("_base"):
        value = getattr(sregs, register.sregs.removesuffix("_base")).base
    else:
        found = getattr(sregs, register.sregs)
        value = found if isinstance(found, int) else found.selector
    return int(value & (1 << register.bits) - 1).to_bytes(register.bits // 8, "little").hex()


def write(register: Register, regs: Any, digits: str) -> bool:
    """Change a general register; False where this one cannot be changed.  ValueError."""
    if register.regs is None:
        return False
    data = bytes.fromhex(digits)
    if len(data) != register.bits // 8:
        raise ValueError
    setattr(regs, register.regs, int.from_bytes(data, "little"))
    return True
