"""A vCPU's registers as a whole: set for its start, printed for its end."""

from collections.abc import Callable
from typing import Any

from vmm.kvm import VcpuFd
from vmm.machine.memory.paging import CR0_PG, EFER_LMA
from vmm.xenabi.values import XenError
from vmm.xenabi.vcpu_context import GENERAL, Segment, VcpuContext

_PRINTED = ("rip", "rflags", *(f"r{name}" for name in GENERAL), *(f"r{n}" for n in range(8, 16)))


def load(kvm: VcpuFd, context: VcpuContext) -> None:
    """Set the whole state; KvmError where the CPU refuses it.  In the vCPU's thread, or before that starts."""
    sregs = kvm.get_sregs()
    for name in ("cs", "ds", "ss", "es", "tr", "fs", "gs"):
        segment = getattr(context, name)
        if segment is not None:
            _load_segment(getattr(sregs, name), segment)
    for name in ("cr0", "cr3", "cr4", "efer"):
        setattr(sregs, name, getattr(context, name))
    kvm.set_sregs(sregs)
    regs = kvm.get_regs()
    for name, value in zip(GENERAL, context.general, strict=True):
        setattr(regs, f"r{name}", value)
    regs.rip, regs.rflags = context.rip, context.rflags
    kvm.set_regs(regs)


def _load_segment(target: Any, source: Segment) -> None:
    bits = source.attributes
    target.base, target.limit, target.selector = source.base, source.last_byte, 0
    target.type, target.s, target.dpl, target.present = source.type, source.is_ordinary, source.dpl, source.is_present
    target.avl, target.l, target.db, target.g = bits >> 8 & 1, bits >> 9 & 1, bits >> 10 & 1, bits >> 11 & 1
    target.unusable = not source.is_present


def report(kvm: VcpuFd, read_virtual: Callable[[int, int], bytes]) -> list[str]:
    """Registers and the bytes at RIP, a line each; the thread has left the guest."""
    regs, sregs = kvm.regs, kvm.sregs
    cs = sregs.cs
    cells = [f"{name}={getattr(regs, name):016x}" for name in _PRINTED]
    lines = [" ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]
    lines.append(
        f"cs={cs.selector:04x} base={cs.base:x} {64 if cs.l else 32 if cs.db else 16}-bit "
        f"cpl={sregs.ss.dpl} cr0={sregs.cr0:x} cr2={sregs.cr2:x} cr3={sregs.cr3:x} cr4={sregs.cr4:x} "
        f"efer={sregs.efer:x}"
    )
    address = regs.rip if sregs.efer & EFER_LMA or sregs.cr0 & CR0_PG else cs.base + regs.rip
    try:
        code = read_virtual(address, 16).hex(" ")
    except XenError:
        code = "not readable"
    return [*lines, f"code at rip: {code}"]
