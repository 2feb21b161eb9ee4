"""multicall: several hypercalls in one.  xen/include/public/xen.h, multicall_entry_t

A long list gives way every few entries: the guest takes its interrupts and issues the rest, as Xen's continuations do.
"""

import errno

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls import registry
from vmm.xenabi.state import Call
from vmm.xenabi.structs import MulticallEntry
from vmm.xenabi.values import Restart, XenError

ENTRIES_AT_A_TIME = 64


@registry.hypercall(Hypercall.multicall, "call_list", "nr_calls")
def multicall(call: Call) -> None:
    """(list, count): carry out each entry and write its result beside it."""
    base, count = call.args[0], call.args[1] & 0xFFFF_FFFF
    abi, arguments = call.abi, call.args
    size = MulticallEntry.sizeof(abi)
    limit = 1 << 8 * abi
    for done in range(count):
        if done == ENTRIES_AT_A_TIME or (done and call.vcpu.stop_requested()):
            raise Restart(base + done * size, count - done)
        address = base + done * size
        entry = MulticallEntry.unpack(call.vcpu.read_virtual(address, size), abi)
        if entry.op == Hypercall.multicall:
            result = -errno.EINVAL  # Xen refuses to nest them
        else:
            call.number = entry.op
            call.args = (entry.arg0, entry.arg1, entry.arg2, entry.arg3, entry.arg4, entry.arg5)
            try:
                result = call.domain.hypercall(call)
            except Restart:
                raise XenError(errno.EINVAL) from None
            finally:
                call.number, call.args = Hypercall.multicall, arguments
        offset = MulticallEntry.offsetof("result", abi)
        call.vcpu.write_virtual(address + offset, (result % limit).to_bytes(abi, "little"))
