"""What a vCPU's exits mean."""

import pytest

from vmm.machine.exits import refused_entry


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        (7, "invalid control fields, which is the fault of this host's KVM, or of what it runs on (hardware reason 0x7)"),
        (0x8000_0021, "invalid guest state (hardware reason 0x80000021)"),
        (0x1234, "hardware reason 0x1234"),
    ],
)
def test_a_refused_entry_is_explained(reason: int, meaning: str) -> None:
    assert refused_entry(reason) == f"the CPU refused to enter the guest: {meaning}"
