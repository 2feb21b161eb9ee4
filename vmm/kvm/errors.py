"""KVM's refusals, as sentences: which ioctl, which errno, what to do."""

import errno
import os
from typing import Any, NoReturn

from vmm.errors import HostError, PyvmmError
from vmm.kvm._native import ffi, lib

HINTS: dict[tuple[str, int], str] = {
    (
        "open",
        errno.ENOENT,
    ): "load KVM's module (modprobe kvm_intel or kvm_amd), or enable virtualisation in the firmware",
    ("open", errno.EACCES): "run as root, or join the group that owns the device (often `kvm`)",
    ("open", errno.EPERM): "run as root, or let this container use the device",
    (
        "open",
        errno.ENODEV,
    ): "load KVM's module (modprobe kvm_intel or kvm_amd), or enable virtualisation in the firmware",
    ("KVM_CREATE_VM", errno.EBUSY): "stop the other hypervisor (VirtualBox, VMware, Xen) that holds VT-x or AMD-V",
    ("KVM_CREATE_VM", errno.ENOMEM): "free some host memory",
    ("KVM_CREATE_VCPU", errno.EINVAL): "ask for fewer vCPUs",
    ("KVM_CREATE_VCPU", errno.EMFILE): "raise the limit on open files (ulimit -n)",
    ("KVM_SET_USER_MEMORY_REGION", errno.ENOMEM): "free some host memory",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the guest's memory regions overlap: this is a fault of pyvmm",
    ("mmap", errno.ENOMEM): "free some host memory, or raise this process's limit (ulimit -v)",
}


class KvmError(PyvmmError):
    """An ioctl on /dev/kvm or a descriptor made from it was refused, or a system call for a guest's memory and timers.

    `call` is the ioctl's name in <linux/kvm.h>, or the system call's; `code` the errno.
    """

    def __init__(self, call: str, code: int) -> None:
        self.call = call
        self.code = code
        name = errno.errorcode.get(code, str(code))
        of_kvm = call.startswith("KVM_")
        other = (
            "see Documentation/virt/kvm/api.rst for this ioctl" if of_kvm else f"see {call}(2) and this process's limits"
        )
        hint = HINTS.get((call, code), other)
        what = "cannot open /dev/kvm" if call == "open" else f"{'KVM' if of_kvm else 'the host'} refused {call}"
        super().__init__(f"{what}: {os.strerror(code)} ({name}); {hint}")


class NoKvm(KvmError, HostError):
    """What a host without a KVM that can be used refuses, as opposed to what pyvmm asks wrongly."""


_ABOUT_THE_HOST = {"open", "KVM_GET_API_VERSION", "KVM_CHECK_EXTENSION", "KVM_CREATE_VM"}


def refused(call: str, code: int) -> KvmError:
    """The error for a refused call: NoKvm where no machine can be made at all."""
    return (NoKvm if call in _ABOUT_THE_HOST else KvmError)(call, code)


def fail(call: str) -> NoReturn:
    """Raise KvmError for the call that has just set errno."""
    raise refused(call, ffi.errno)


def ioctl(fd: int, call: str, request: int, argument: Any = 0) -> int:
    """One ioctl; KvmError where the kernel refuses it."""
    if isinstance(argument, int):
        argument = ffi.cast("unsigned long", argument)
    result: int = lib.ioctl(fd, request, argument)
    if result < 0:
        fail(call)
    return result
