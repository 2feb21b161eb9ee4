"""multicall: several hypercalls in one.  xen/include/public/xen.h, multicall_entry_t

A long list gives way every few entries, and where one of its entries gives way or waits: the guest takes its interrupts and
issues the rest, as Xen's continuations do.
"""

import errno

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls import registry
from vmm.xenabi.state import Call
from vmm.xenabi.structs import MulticallEntry
from vmm.xenabi.values import HypercallOutcome, Restart, Wait

ENTRIES_AT_A_TIME = 64


@registry.hypercall(Hypercall.multicall, "call_list", "nr_calls")
def multicall(call: Call) -> HypercallOutcome:
    """(list, count): carry out each entry and write its result beside it."""
    base, count = call.args[0], call.args[1] & 0xFFFF_FFFF
    abi, arguments = call.abi, call.args
    size = MulticallEntry.sizeof(abi)
    for done in range(count):
        if done == ENTRIES_AT_A_TIME or (done and call.vcpu.stop_requested()):
            return _rest(base, count, done, size)
        address = base + done * size
        entry = MulticallEntry.unpack(call.vcpu.read_virtual(address, size), abi)
        outcome: HypercallOutcome
        if entry.op == Hypercall.multicall:
            outcome = -errno.EINVAL  # Xen refuses to nest them
        else:
            call.number = entry.op
            call.args = (entry.arg0, entry.arg1, entry.arg2, entry.arg3, entry.arg4, entry.arg5)
            try:
                outcome = call.domain.hypercall(call)
            finally:
                call.number, call.args = Hypercall.multicall, arguments
        if isinstance(outcome, Wait):
            return _after(call, outcome, address, _rest(base, count, done + 1, size))
        if isinstance(outcome, Restart):
            _rewrite(call, address, outcome)
            return _rest(base, count, done, size)
        _answer(call, address, outcome)
    return 0


def _rest(base: int, count: int, done: int, size: int) -> Restart:
    return Restart((base + done * size, count - done))


def _after(call: Call, wait: Wait, address: int, rest: Restart) -> Wait:
    """An entry that waits: its answer is written, and the list goes on, once it has waited."""

    def finish() -> Restart:
        answer = wait.finish()
        if isinstance(answer, int):
            _answer(call, address, answer)
        return rest

    return wait._replace(finish=finish)


def _answer(call: Call, address: int, result: int) -> None:
    offset = MulticallEntry.offsetof("result", call.abi)
    call.vcpu.write_virtual(address + offset, (result % (1 << 8 * call.abi)).to_bytes(call.abi, "little"))


def _rewrite(call: Call, address: int, restart: Restart) -> None:
    """Where an entry gives way, its new arguments are put into the list, as Xen does."""
    for number, value in enumerate(restart.arguments):
        offset = MulticallEntry.offsetof(f"arg{number}", call.abi)
        call.vcpu.write_virtual(address + offset, (value % (1 << 8 * call.abi)).to_bytes(call.abi, "little"))
