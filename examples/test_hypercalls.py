"""Assert on hypercalls, with pytest alone: `pytest examples/test_hypercalls.py --guest-kernel vmlinuz`.

The fixture `guest` comes from pyvmm's plugin, which needs no line in a conftest.py.
"""

import pytest

TOLERATED = {
    "hvm_op.pagetable_dying",  # Linux asks once, and is told that there is no shadow paging
    "vcpu_op.register_vcpu_time_memory_area",  # which only a KVM with KVM_XEN can do; Linux goes without
}


@pytest.mark.guest(memory="256M", vcpus=[1, 2], append="quiet", timeout=300)
def test_a_boot_makes_no_hypercall_that_fails(guest):
    guest.run("true", check=True)
    failed = {call.name for call in guest.hypercalls if call.failed}
    assert failed <= TOLERATED


@pytest.mark.guest(memory="256M", append="quiet", timeout=300)
def test_a_sleep_sets_one_timer_and_waits_for_it(guest):
    guest.run("true")
    before = len(guest.hypercalls.filter("set_singleshot_timer"))
    guest.run("sleep 0.5", check=True)
    assert len(guest.hypercalls.filter("set_singleshot_timer")) > before


@pytest.mark.guest(memory="256M", append="quiet", timeout=300)
def test_every_vcpu_registers_its_own_vcpu_info(boot_guest):
    guest = boot_guest(vcpus=2)
    guest.run("true")
    registered = [dict(call.fields)["vcpuid"] for call in guest.hypercalls.filter("register_vcpu_info")]
    assert sorted(registered) == ["0", "1"]
