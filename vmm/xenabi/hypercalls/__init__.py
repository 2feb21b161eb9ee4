"""One module a hypercall; importing this package registers those that every domain may make."""

from vmm.xenabi.hypercalls import (  # noqa: F401
    console_io,
    event_channel_op,
    grant_table_op,
    hvm_op,
    memory_op,
    mmuext_op,
    multicall,
    sched_op,
    set_timer_op,
    vcpu_op,
    vm_assist,
    xen_version,
    xenpmu_op,
)
from vmm.xenabi.hypercalls.registry import TABLE, Entry, Suboperations, dispatch, name_of, unfold

__all__ = ["TABLE", "Entry", "Suboperations", "dispatch", "load_privileged", "name_of", "unfold"]


def load_privileged() -> None:
    """Register those, too, that only a privileged domain may make."""
    from vmm.xenabi.hypercalls import domctl, physdev_op, platform_op, sysctl  # noqa: F401
