"""The KVM capabilities that pyvmm uses, as a table: what each is for, and whether pyvmm can do without it."""

from enum import IntFlag
from typing import NamedTuple, Protocol

from vmm.kvm._native import lib


class Capability(NamedTuple):
    """One row: KVM's name and number, whether pyvmm cannot do without it, and what it is used for."""

    name: str
    number: int
    required: bool
    purpose: str


CAPABILITIES = (
    Capability("KVM_CAP_USER_MEMORY", lib.KVM_CAP_USER_MEMORY, True, "guest RAM"),
    Capability("KVM_CAP_SPLIT_IRQCHIP", lib.KVM_CAP_SPLIT_IRQCHIP, True, "a LAPIC in the kernel, no PIC, PIT and IOAPIC"),
    Capability("KVM_CAP_IRQFD", lib.KVM_CAP_IRQFD, True, "event-channel upcalls by one eventfd write"),
    Capability("KVM_CAP_IOEVENTFD", lib.KVM_CAP_IOEVENTFD, True, "doorbells that wake a device thread"),
    Capability("KVM_CAP_SYNC_REGS", lib.KVM_CAP_SYNC_REGS, True, "reading hypercall arguments without an ioctl"),
    Capability("KVM_CAP_IMMEDIATE_EXIT", lib.KVM_CAP_IMMEDIATE_EXIT, True, "stopping a vCPU at once"),
    Capability("KVM_CAP_EXT_CPUID", lib.KVM_CAP_EXT_CPUID, True, "the guest's CPUID"),
    Capability("KVM_CAP_MP_STATE", lib.KVM_CAP_MP_STATE, True, "blocking and starting vCPUs"),
    Capability("KVM_CAP_X86_USER_SPACE_MSR", lib.KVM_CAP_X86_USER_SPACE_MSR, False, "transport `page`: the hypercall MSR"),
    Capability("KVM_CAP_X86_MSR_FILTER", lib.KVM_CAP_X86_MSR_FILTER, False, "transport `page`: the hypercall MSR"),
    Capability("KVM_CAP_GET_TSC_KHZ", lib.KVM_CAP_GET_TSC_KHZ, False, "the TSC frequency in the time leaf"),
    Capability("KVM_CAP_ADJUST_CLOCK", lib.KVM_CAP_ADJUST_CLOCK, False, "guest timers against KVM's own clock"),
    Capability("KVM_CAP_READONLY_MEM", lib.KVM_CAP_READONLY_MEM, False, "read-only guest memory"),
    Capability("KVM_CAP_NR_MEMSLOTS", lib.KVM_CAP_NR_MEMSLOTS, False, "how many memory regions a guest may have"),
    Capability("KVM_CAP_NR_VCPUS", lib.KVM_CAP_NR_VCPUS, False, "how many vCPUs KVM recommends"),
    Capability("KVM_CAP_MAX_VCPUS", lib.KVM_CAP_MAX_VCPUS, False, "how many vCPUs KVM allows"),
)  # fmt: skip


class XenFlag(IntFlag):
    """What KVM_CAP_XEN_HVM answers: the parts of Xen that this KVM can do in the kernel (api.rst, 8.27)."""

    HYPERCALL_MSR = lib.KVM_XEN_HVM_CONFIG_HYPERCALL_MSR
    INTERCEPT_HCALL = lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    SHARED_INFO = lib.KVM_XEN_HVM_CONFIG_SHARED_INFO
    RUNSTATE = lib.KVM_XEN_HVM_CONFIG_RUNSTATE
    EVTCHN_2LEVEL = lib.KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    EVTCHN_SEND = lib.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
    RUNSTATE_UPDATE_FLAG = 1 << 6  # Linux 6.3; older headers do not name it


class _Checker(Protocol):
    def capability(self, number: int) -> int: ...


def msr_filter_available(system: _Checker) -> bool:
    """Whether guest writes of a chosen MSR can be brought to user space."""
    return bool(system.capability(lib.KVM_CAP_X86_MSR_FILTER) and system.capability(lib.KVM_CAP_X86_USER_SPACE_MSR))
