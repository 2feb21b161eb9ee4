"""One module a hypercall; importing this package registers them all."""

from vmm.xenabi.hypercalls import (  # noqa: F401
    console_io,
    event_channel_op,
    grant_table_op,
    hvm_op,
    memory_op,
    multicall,
    sched_op,
    set_timer_op,
    vcpu_op,
    vm_assist,
    xen_version,
)
from vmm.xenabi.hypercalls.registry import TABLE, Entry, Suboperations, dispatch, name_of

__all__ = ["TABLE", "Entry", "Suboperations", "dispatch", "name_of"]
