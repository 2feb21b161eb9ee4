"""Driving /dev/kvm: one object a descriptor, one method an ioctl in use.  Knows nothing of Xen domains."""

from vmm.kvm.capabilities import CAPABILITIES, Capability, XenFlag
from vmm.kvm.errors import KvmError
from vmm.kvm.events import EventTable
from vmm.kvm.hostmem import PAGE_BYTES, HostMemory, PageFile
from vmm.kvm.system import CpuidEntry, System
from vmm.kvm.vcpu import CS_L, SS_DPL, Exit, GuestDebug, MpState, VcpuFd, allow_kicks
from vmm.kvm.vm import MsiRoute, SlotFlag, VmFd

__all__ = [
    "CAPABILITIES",
    "CS_L",
    "PAGE_BYTES",
    "SS_DPL",
    "Capability",
    "CpuidEntry",
    "EventTable",
    "Exit",
    "GuestDebug",
    "HostMemory",
    "KvmError",
    "MpState",
    "MsiRoute",
    "PageFile",
    "SlotFlag",
    "System",
    "VcpuFd",
    "VmFd",
    "XenFlag",
    "allow_kicks",
]  # fmt: skip
