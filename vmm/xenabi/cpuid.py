"""The CPUID leaves that Xen adds at 0x40000000.  xen/include/public/arch-x86/cpuid.h"""

import struct
from typing import NamedTuple

from vmm.xenabi.constants import CPUID_BASE, HYPERCALL_MSR, HvmCpuidFeature

SIGNATURE = struct.unpack("<III", b"XenVMMXenVMM")
TSC_NATIVE = 2  # TSC_MODE_NEVER_EMULATE
LAST_LEAF = 5


class Leaf(NamedTuple):
    """One leaf, or sub-leaf where `subleaf` is not None."""

    function: int
    subleaf: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


def tsc_scale(tsc_khz: int) -> tuple[int, int]:
    """Multiplier and shift that turn TSC ticks into nanoseconds: ns = (ticks << shift) * multiplier >> 32."""
    shift, rate = 0, tsc_khz * 1000
    while rate > 2 * 10**9:
        rate, shift = rate >> 1, shift - 1
    while rate <= 10**9:
        rate, shift = rate << 1, shift + 1
    return (10**9 << 32) // rate & 0xFFFF_FFFF, shift


def xen_leaves(version: tuple[int, int], vcpu_id: int, domid: int, tsc_khz: int) -> list[Leaf]:
    """Leaves 0x40000000 to 0x40000005 for one vCPU, as Xen 4.17 shows them to a PVH domU."""
    features = HvmCpuidFeature(0)
    for feature in HvmCpuidFeature:
        features |= feature
    multiplier, shift = tsc_scale(tsc_khz)
    return [
        Leaf(CPUID_BASE, None, CPUID_BASE + LAST_LEAF, *SIGNATURE),
        Leaf(CPUID_BASE + 1, None, version[0] << 16 | version[1], 0, 0, 0),
        Leaf(CPUID_BASE + 2, None, 1, HYPERCALL_MSR, 0, 0),
        Leaf(CPUID_BASE + 3, 0, 0, TSC_NATIVE, tsc_khz, 1),
        Leaf(CPUID_BASE + 3, 1, 0, 0, multiplier, shift & 0xFFFF_FFFF),
        Leaf(CPUID_BASE + 3, 2, tsc_khz, 0, 0, 0),
        Leaf(CPUID_BASE + 4, 0, int(features), vcpu_id, domid, 0),
        Leaf(CPUID_BASE + 5, 0, 0, 0, 0, 0),
    ]
