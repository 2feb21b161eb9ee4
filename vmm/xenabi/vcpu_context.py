"""The state that a vCPU starts in: what VCPUOP_initialise asks for, and the flat one of PVH.

Source: xen/include/public/hvm/hvm_vcpu.h; Intel SDM volume 3, 3.4.5.1 for the kinds of segments.
"""

import errno
from typing import NamedTuple

from vmm.xenabi.structs import VcpuHvmX86, VcpuHvmX86_64
from vmm.xenabi.values import XenError

GENERAL = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
CR0_PE, CR0_ET, CR0_PG = 1, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
_EFER_ALLOWED = 1 | EFER_LME | EFER_LMA | 1 << 11  # SCE, NXE
RFLAGS_RESERVED = 2
_RFLAGS_ALLOWED = 0x3D_7FD7  # all that are defined but VM
_CODE, _WRITABLE, _BUSY_TSS = 8, 2, 11


class Segment(NamedTuple):
    """A segment register's hidden part; `attributes` as Xen packs them: type, S, DPL, P, AVL, L, D/B, G from bit 0 up."""

    base: int
    limit: int
    attributes: int

    @property
    def type(self) -> int:
        """Bits 0 to 3 of the attributes."""
        return self.attributes & 15

    @property
    def is_ordinary(self) -> bool:
        """S: code or data, not a system segment."""
        return bool(self.attributes & 1 << 4)

    @property
    def dpl(self) -> int:
        """The privilege level."""
        return self.attributes >> 5 & 3

    @property
    def is_present(self) -> bool:
        """Whether the segment may be used."""
        return bool(self.attributes & 1 << 7)

    @property
    def last_byte(self) -> int:
        """The limit in bytes, whatever the granularity."""
        return self.limit << 12 | 0xFFF if self.attributes & 1 << 11 and self.limit < 1 << 20 else self.limit


class VcpuContext(NamedTuple):
    """All of it; `general` in the order of `GENERAL`."""

    general: tuple[int, ...]
    rip: int
    rflags: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cs: Segment
    ds: Segment
    ss: Segment
    es: Segment
    tr: Segment
    fs: Segment | None = None
    """As after a reset where it is None, and so is `gs`."""
    gs: Segment | None = None


_CODE_32, _DATA_32 = Segment(0, 0xFFFF_FFFF, 0xC9B), Segment(0, 0xFFFF_FFFF, 0xC93)
_CODE_64, _TASK = Segment(0, 0xFFFF_FFFF, 0xA9B), Segment(0, 0x67, 0x8B)


def flat(eip: int, ebx: int) -> VcpuContext:
    """PVH's: 32-bit protected mode, flat segments, paging off (docs/misc/pvh.pandoc).

    Nothing there speaks of FS and GS.  A 32-bit Linux reads its stack protector's canary by FS before it has set it.
    """
    return VcpuContext(
        (0, 0, 0, ebx, 0, 0, 0, 0), eip, RFLAGS_RESERVED, CR0_PE | CR0_ET, 0, 0, 0,
        _CODE_32, _DATA_32, _DATA_32, _DATA_32, _TASK, _DATA_32, _DATA_32,
    )  # fmt: skip


def from_64(op: VcpuHvmX86_64) -> VcpuContext:
    """VCPU_HVM_MODE_64B: straight into long mode.  XenError(EINVAL) where the registers do not say so."""
    if not _is_canonical(op.rip):
        raise XenError(errno.EINVAL)
    if not (op.cr0 & CR0_PE and op.cr0 & CR0_PG and op.cr4 & CR4_PAE and op.efer & EFER_LME):
        raise XenError(errno.EINVAL)
    general = tuple(getattr(op, f"r{name}") for name in GENERAL)
    segments = (_CODE_64, _DATA_32, _DATA_32, _DATA_32, _TASK)
    return _checked(VcpuContext(general, op.rip, op.rflags, op.cr0, op.cr3, op.cr4, op.efer, *segments))


def from_32(op: VcpuHvmX86) -> VcpuContext:
    """VCPU_HVM_MODE_32B: into real, protected or compatibility mode.  XenError(EINVAL) for segments that are none."""
    segments = {
        name: Segment(getattr(op, f"{name}_base"), getattr(op, f"{name}_limit"), getattr(op, f"{name}_ar"))
        for name in ("cs", "ds", "ss", "es", "tr")
    }
    for name, segment in segments.items():
        _check_segment(name, segment)
    code, stack = segments["cs"], segments["ss"]
    if op.pad1 or any(op.pad2) or code.dpl > stack.dpl or op.eip > code.last_byte:
        raise XenError(errno.EINVAL)
    general = tuple(getattr(op, f"e{name}") for name in GENERAL)
    return _checked(VcpuContext(general, op.eip, op.eflags, op.cr0, op.cr3, op.cr4, op.efer, **segments))


def _check_segment(name: str, segment: Segment) -> None:
    kind = segment.type
    if segment.attributes == 0 and name in ("ds", "es"):
        return
    if name == "tr":
        good = not segment.is_ordinary and kind == _BUSY_TSS
    elif name == "cs":
        good = segment.is_ordinary and bool(kind & _CODE)
    elif name == "ss":
        good = segment.is_ordinary and not kind & _CODE and bool(kind & _WRITABLE)
    else:
        good = segment.is_ordinary and (not kind & _CODE or bool(kind & _WRITABLE))
    if not good or not segment.is_present or segment.attributes >> 12:
        raise XenError(errno.EINVAL)


def _checked(context: VcpuContext) -> VcpuContext:
    if context.cr0 & CR0_PG and not context.cr0 & CR0_PE:
        raise XenError(errno.EINVAL)
    if context.efer & ~_EFER_ALLOWED or context.rflags & ~_RFLAGS_ALLOWED:
        raise XenError(errno.EINVAL)
    is_long = bool(context.efer & EFER_LME and context.cr0 & CR0_PG)
    efer = context.efer | EFER_LMA if is_long else context.efer & ~EFER_LMA
    return context._replace(efer=efer, rflags=context.rflags | RFLAGS_RESERVED)


def _is_canonical(address: int) -> bool:
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)
