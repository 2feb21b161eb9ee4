"""KVM's refusals as sentences."""

import errno

import pytest

from vmm.errors import ExitStatus, HostError
from vmm.kvm.errors import refused


@pytest.mark.parametrize(
    ("call", "code", "expected"),
    [
        ("open", errno.ENOENT, "cannot open /dev/kvm: No such file or directory (ENOENT); load KVM's module"),
        ("open", errno.EACCES, "cannot open /dev/kvm: Permission denied (EACCES); run as root"),
        (
            "KVM_CREATE_VM",
            errno.EBUSY,
            "KVM refused KVM_CREATE_VM: Device or resource busy (EBUSY); stop the other hypervisor",
        ),
        ("KVM_RUN", errno.EFAULT, "KVM refused KVM_RUN: Bad address (EFAULT); see Documentation"),
        ("mmap", errno.ENOMEM, "the host refused mmap: Cannot allocate memory (ENOMEM); free some host memory"),
        ("madvise", errno.EINVAL, "the host refused madvise: Invalid argument (EINVAL); see madvise(2)"),
    ],
)
def test_refusal_names_the_call_the_errno_and_what_to_do(call: str, code: int, expected: str) -> None:
    error = refused(call, code)
    assert str(error).startswith(expected)
    assert "\n" not in str(error)
    about_the_host = call in ("open", "KVM_CREATE_VM")
    assert error.exit_status is (ExitStatus.UNSUPPORTED_HOST if about_the_host else ExitStatus.FAILED)
    assert isinstance(error, HostError) is about_the_host, "a test's plugin skips for these, and fails for others"
