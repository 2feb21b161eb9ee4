"""/dev/kvm itself: what this host's KVM can do, and the making of virtual machines."""

import os
from typing import NamedTuple

from vmm.errors import HostError
from vmm.kvm._native import ffi, lib
from vmm.kvm.capabilities import CAPABILITIES, XenFlag
from vmm.kvm.errors import ioctl, refused
from vmm.kvm.vm import VmFd


class CpuidEntry(NamedTuple):
    """One CPUID leaf as a guest will see it; `subleaf` is None where the leaf has no sub-leaves."""

    function: int
    subleaf: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


class System:
    """An open /dev/kvm.  NoKvm where it cannot be opened; HostError where its version is not 12."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise refused("open", error.errno or 0) from None
        version = ioctl(self.fd, "KVM_GET_API_VERSION", lib.KVM_GET_API_VERSION)
        if version != lib.KVM_API_VERSION:
            raise HostError(f"{path} speaks KVM API version {version}, pyvmm version 12; use a Linux of this century")

    def capability(self, number: int) -> int:
        """KVM_CHECK_EXTENSION: 0 where the host lacks it, else 1 or a number with a meaning of its own."""
        return ioctl(self.fd, "KVM_CHECK_EXTENSION", lib.KVM_CHECK_EXTENSION, number)

    def capabilities(self) -> dict[str, int]:
        """Every capability that pyvmm uses, by name."""
        return {row.name: self.capability(row.number) for row in CAPABILITIES}

    def xen_flags(self) -> XenFlag:
        """The parts of Xen that this KVM does in the kernel; none without CONFIG_KVM_XEN."""
        return XenFlag(self.capability(lib.KVM_CAP_XEN_HVM) & sum(XenFlag))

    def require(self) -> None:
        """HostError where a capability is missing that pyvmm cannot do without."""
        for row in CAPABILITIES:
            if row.required and not self.capability(row.number):
                raise HostError(f"this host's KVM has no {row.name} ({row.purpose}); use Linux 5.10 or later")

    def supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: what a guest can be shown on this host."""
        room = 256
        table = ffi.new("struct kvm_cpuid2 *", {"entries": room})
        table.nent = room
        ioctl(self.fd, "KVM_GET_SUPPORTED_CPUID", lib.KVM_GET_SUPPORTED_CPUID, table)
        indexed = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        return [
            CpuidEntry(row.function, row.index if row.flags & indexed else None, row.eax, row.ebx, row.ecx, row.edx)
            for row in table.entries[0 : table.nent]
        ]

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's shared run area."""
        return ioctl(self.fd, "KVM_GET_VCPU_MMAP_SIZE", lib.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self) -> VmFd:
        """KVM_CREATE_VM: a machine without memory or vCPUs."""
        return VmFd(ioctl(self.fd, "KVM_CREATE_VM", lib.KVM_CREATE_VM, 0), self.vcpu_mmap_size())

    def close(self) -> None:
        """Machines made from here live on until they are closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
