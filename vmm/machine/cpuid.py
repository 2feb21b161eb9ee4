"""The CPUID that a vCPU is shown: what KVM supports, less what Xen hides from a PVH domU, plus Xen's own leaves."""

import struct

from vmm.boot.acpi import apic_id
from vmm.kvm import CpuidEntry
from vmm.xenabi.cpuid import xen_leaves

_HYPERVISOR_LEAVES = range(0x4000_0000, 0x4001_0000)
_BRAND_LEAVES = range(0x8000_0002, 0x8000_0005)
_BRAND_BYTES = 48

# Leaf 1
_ECX_MONITOR, _ECX_VMX, _ECX_PDCM, _ECX_X2APIC, _ECX_TSC_DEADLINE, _ECX_HYPERVISOR = 3, 5, 15, 21, 24, 31
_EDX_HTT = 28
# Leaf 0x80000001
_ECX_SVM, _ECX_CMP_LEGACY, _ECX_PERFCTR_CORE, _ECX_TOPOEXT = 2, 1, 23, 22

# Leaf 7
_ECX_UMIP = 2

_EMPTY = frozenset({
    0x5,  # MONITOR
    0x6,  # thermal and power
    0xA,  # performance monitoring
    0x8000_000A,  # SVM
    0x8000_0007,  # an invariant TSC would make Linux prefer it to the Xen clock, which Xen's default does not show
    0x8000_001D, 0x8000_001E,  # cache and node topology of the host
    0x8000_0022,  # performance monitoring
})  # fmt: skip
"""Leaves that Xen 4.17 shows as zeros."""


def _without(value: int, *bits: int) -> int:
    for bit in bits:
        value &= ~(1 << bit)
    return value


def _shown(row: CpuidEntry, vcpu: int, vcpus: int, *, has_umip: bool) -> CpuidEntry:
    """One of KVM's leaves as the guest sees it."""
    function, _, eax, ebx, ecx, edx = row
    if function in _EMPTY:
        return row._replace(eax=0, ebx=0, ecx=0, edx=0)
    if function == 1:
        ebx = ebx & 0xFFFF | apic_id(vcpu) << 24 | min(2 * vcpus, 255) << 16
        ecx = _without(ecx, _ECX_MONITOR, _ECX_VMX, _ECX_PDCM, _ECX_TSC_DEADLINE)
        ecx |= 1 << _ECX_HYPERVISOR | 1 << _ECX_X2APIC
        edx |= 1 << _EDX_HTT
    elif function in (0xB, 0x1F):
        # One thread a core, one core a package but for the APIC ids' spare bit, as Xen 4.17 has it.
        edx = apic_id(vcpu)
        if function == 0x1F or row.subleaf not in (0, 1):
            eax = ebx = 0
            ecx = row.subleaf or 0
        elif row.subleaf == 0:
            eax, ebx, ecx = 1, 1, 1 << 8
        else:
            eax, ebx, ecx = max(apic_id(vcpus - 1), 1).bit_length(), vcpus, 2 << 8 | 1
    elif function == 7 and row.subleaf in (None, 0) and not has_umip:
        ecx = _without(ecx, _ECX_UMIP)
    elif function == 4:
        eax &= 0x3FF  # caches are not said to be shared
    elif function == 0x8000_0001:
        ecx = _without(ecx, _ECX_SVM, _ECX_PERFCTR_CORE, _ECX_TOPOEXT)
    elif function == 0x8000_0008:
        eax &= 0xFFFF  # a guest of Xen's is not told how wide its own guests' addresses may be
        ecx = max(2 * vcpus - 1, 0) | (max(apic_id(vcpus - 1), 1).bit_length() << 12)
    return row._replace(eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def _brand(text: bytes) -> list[CpuidEntry]:
    words = struct.iter_unpack("<4I", text[: _BRAND_BYTES - 1].ljust(_BRAND_BYTES, b"\0"))
    return [CpuidEntry(leaf, None, *row) for leaf, row in zip(_BRAND_LEAVES, words, strict=True)]


def guest_cpuid(
    supported: list[CpuidEntry], *, vcpu: int, vcpus: int, domid: int, version: tuple[int, int], tsc_khz: int,
    brand: bytes = b"", has_umip: bool = True,
) -> list[CpuidEntry]:  # fmt: skip
    """All leaves of one vCPU; `brand` is the processor's name, which KVM does not hand on.

    Without `has_umip` the host's CPU has no UMIP: KVM shows it all the same, and emulates all but SMSW; Xen shows none.
    """
    shown = [_shown(row, vcpu, vcpus, has_umip=has_umip) for row in supported if row.function not in _HYPERVISOR_LEAVES]
    if brand:
        shown = [row for row in shown if row.function not in _BRAND_LEAVES] + _brand(brand)
    return shown + [CpuidEntry(*leaf) for leaf in xen_leaves(version, vcpu, domid, tsc_khz)]
