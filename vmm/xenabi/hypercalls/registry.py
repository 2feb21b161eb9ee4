"""The registry: one decorated function a hypercall or sub-operation, and the one place that calls them.

    @suboperation(Hypercall.event_channel_op, 4, "send", arg=EvtchnSend)
    def send(call: Call, op: EvtchnSend) -> None: ...

A handler answers an int (None is 0), a Restart or a Wait, or raises XenError.  `arg` names the structure behind a pointer
argument, read once before the handler runs; `out` writes it back after one that did not fail.
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from vmm.xenabi.constants import DOMID_SELF, Hypercall
from vmm.xenabi.cstruct import Struct
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.values import BACKEND_DOMID, HypercallOutcome, XenError

Handler = Callable[..., HypercallOutcome | None]


class Entry(NamedTuple):
    """A registered handler: its name as Xen writes it, the structure it takes, whether that is written back.

    `names` are those of the arguments that are plain numbers, in order, without the command.
    """

    name: str
    handler: Handler
    arg: type[Struct] | None = None
    out: bool = False
    at: int = 1
    names: tuple[str, ...] = ()
    check: Callable[[Call], None] | None = None
    """What is looked at before the structure is read."""
    unreadable: Callable[[Call], int] | None = None
    """What is answered where the structure cannot be read, if it is no errno."""


class Suboperations:
    """A hypercall whose first argument says which of many it is."""

    def __init__(self, mask: int, unknown: int) -> None:
        self.mask = mask
        self.unknown = unknown
        self.entries: dict[int, Entry] = {}
        self.check: Callable[[Call], None] | None = None
        """What is looked at before the command is."""


class Controls(Suboperations):
    """A hypercall whose one argument points to a structure with the command, a version, and what the command takes.

    Its entries see `call.args` as (command, where its own structure is, the domid that the header names).
    """

    def __init__(self, header: type[Struct], version: int, absent: tuple[int, ...] = ()) -> None:
        super().__init__(0xFFFF_FFFF, errno.ENOSYS)
        self.header = header
        self.version = version
        self.absent = frozenset(absent)
        """Commands that Xen has and pyvmm has not: these are answered -EOPNOTSUPP."""


class Unfolded(tuple[int, ...]):
    """The arguments of such a call, once its header has been read."""


TABLE: dict[int, Entry | Suboperations] = {}

# memory_op keeps a progress count above its six command bits.
_MASKS = {Hypercall.memory_op: 0x3F}
PRIVILEGED: dict[int, int] = {
    Hypercall.sysctl: errno.EPERM, Hypercall.domctl: errno.EPERM, Hypercall.platform_op: errno.EPERM,
    Hypercall.hypfs_op: errno.EPERM, Hypercall.physdev_op: errno.ENOSYS,
}  # fmt: skip
"""What no other than the privileged domain may ask, whether it exists or not, and what any other is answered."""
PIRQ_COMMANDS = (13, 14)
"""PHYSDEVOP_map_pirq and unmap_pirq."""
VERSIONS = {Hypercall.sysctl: 0x15, Hypercall.domctl: 0x15, Hypercall.platform_op: 0x0300_0001}
"""Those whose version is looked at before anything else: XEN_*_INTERFACE_VERSION, the second word behind the pointer."""


def hypercall(number: Hypercall, *names: str) -> Callable[[Handler], Handler]:
    """Register a hypercall without sub-operations, its arguments by name; its handler takes the call alone."""

    def register(handler: Handler) -> Handler:
        TABLE[number] = Entry(number.name, handler, names=names)
        return handler

    return register


def suboperation(
    number: Hypercall,
    sub: int,
    name: str,
    *,
    arg: type[Struct] | None = None,
    at: int = 1,
    out: bool = False,
    names: tuple[str, ...] = (),
    check: Callable[[Call], None] | None = None,
    unreadable: Callable[[Call], int] | None = None,
) -> Callable[[Handler], Handler]:
    """Register a sub-operation; its handler takes the call, and the structure behind argument `at` if `arg` names one.

    `check` may refuse the call before that is read; `unreadable` answers it where that cannot be.
    """

    def register(handler: Handler) -> Handler:
        group = TABLE.get(number)
        if group is None:
            group = TABLE[number] = Suboperations(_MASKS.get(number, 0xFFFF_FFFF), errno.ENOSYS)
        assert isinstance(group, Suboperations)
        group.entries[sub] = Entry(f"{number.name}.{name}", handler, arg, out, at, names, check, unreadable)
        return handler

    return register


def checked_first(number: Hypercall) -> Callable[[Callable[[Call], None]], Callable[[Call], None]]:
    """Register what is looked at for every command of a hypercall, known or not; to be used behind its first command."""

    def register(check: Callable[[Call], None]) -> Callable[[Call], None]:
        group = TABLE[number]
        assert isinstance(group, Suboperations)
        group.check = check
        return check

    return register


def exists(domain: DomainState, domid: int) -> bool:
    """Whether a domid is a domain's for all that a guest can know: that which back ends here act for always is."""
    return domid == BACKEND_DOMID or domain.hypervisor.find(domid) is not None


def is_back_ends(domain: DomainState, domid: int) -> bool:
    """Whether back ends here act for that domain and no other does: to a guest a PV one, with nothing of its own."""
    return domid == BACKEND_DOMID and domain.hypervisor.find(domid) is None


def target_of(call: Call, domid: int) -> DomainState:
    """The domain that a call is about: the caller's own or, for a privileged caller, any.

    XenError(ESRCH) where there is none, XenError(EPERM) for another's.
    """
    own = call.domain
    if domid in (DOMID_SELF, own.domid):
        return own
    if not exists(own, domid):
        raise XenError(errno.ESRCH)
    found = own.hypervisor.find(domid)
    if found is None or not own.privileged:
        raise XenError(errno.EPERM)
    return found


def entry_of(number: int, args: tuple[int, ...]) -> Entry | None:
    """Who carries out a hypercall with these arguments; None where nobody does."""
    found = TABLE.get(number)
    return found.entries.get(args[0] & found.mask) if isinstance(found, Suboperations) else found


def name_of(number: int, args: tuple[int, ...]) -> str:
    """How Xen's headers call a hypercall with these arguments; a number where nothing is registered."""
    entry = entry_of(number, args)
    if entry is not None:
        return entry.name
    base = Hypercall(number).name if number in Hypercall._value2member_map_ else f"hypercall {number}"
    group = TABLE.get(number)
    return f"{base}.{args[0] & group.mask}" if isinstance(group, Suboperations) else base


def unfold(call: Call) -> None:
    """Read the header of a call that has its command in memory, so that the call can be named.

    XenError(EFAULT).  Reads nothing a second time, and nothing for a domain that may not make such calls.
    """
    group = TABLE.get(call.number)
    if type(group) is not Controls or isinstance(call.args, Unfolded) or not call.domain.privileged:
        return
    pointer = call.args[0]
    header: Any = group.header.unpack(call.vcpu.read_virtual(pointer, group.header.sizeof(call.abi)), call.abi)
    inside = group.header.offsetof("u", call.abi)
    call.args = Unfolded((header.cmd, pointer + inside, getattr(header, "domain", 0), 0, 0, 0))
    call.header = header


def _control(call: Call, group: Controls) -> HypercallOutcome:
    unfold(call)
    header: Any = call.header
    if header.interface_version != group.version:
        raise XenError(errno.EACCES)
    entry = group.entries.get(header.cmd)
    if entry is None:
        call.domain.unknown_hypercalls[name_of(call.number, call.args)] += 1
        raise XenError(errno.EOPNOTSUPP if header.cmd in group.absent else group.unknown)
    if entry.arg is None:
        return entry.handler(call) or 0
    operand: Any = entry.arg.unpack(header.u[: entry.arg.sizeof(call.abi)], call.abi)
    call.operand = operand
    result = entry.handler(call, operand) or 0
    if entry.out:
        call.vcpu.write_virtual(call.args[1], operand.pack(call.abi))
    return result


def _refusal(call: Call) -> XenError:
    """What a domain without privileges is answered to a hypercall that it may not make."""
    version = VERSIONS.get(Hypercall(call.number))
    if version is not None:
        try:
            header = call.vcpu.read_virtual(call.args[0], 8)
        except XenError as error:
            return error
        if int.from_bytes(header[4:], "little") != version:
            return XenError(errno.EACCES)
    if call.number == Hypercall.physdev_op and call.args[0] & 0xFFFF_FFFF in PIRQ_COMMANDS:
        return XenError(call.domain.behaviour.no_pirqs)
    return XenError(PRIVILEGED[call.number])


def dispatch(call: Call) -> HypercallOutcome:
    """Carry out one hypercall: what goes to RAX, as a signed number, or what has to be done before that is known."""
    try:
        if call.number in PRIVILEGED and not call.domain.privileged:
            raise _refusal(call)
        found = TABLE.get(call.number)
        if type(found) is Suboperations:
            if found.check is not None:
                found.check(call)
            entry = found.entries.get(call.args[0] & found.mask)
            if entry is None:
                call.domain.unknown_hypercalls[name_of(call.number, call.args)] += 1
                raise XenError(found.unknown)
        elif type(found) is Controls:
            return _control(call, found)
        elif found is None:
            call.domain.unknown_hypercalls[name_of(call.number, call.args)] += 1
            raise XenError(errno.ENOSYS)
        else:
            entry = cast(Entry, found)
        if entry.arg is None:
            return entry.handler(call) or 0
        if entry.check is not None:
            entry.check(call)
        address = call.args[entry.at]
        try:
            data = call.vcpu.read_virtual(address, entry.arg.sizeof(call.abi))
        except XenError:
            if entry.unreadable is None:
                raise
            return entry.unreadable(call)
        operand: Any = entry.arg.unpack(data, call.abi)
        call.operand = operand
        result = entry.handler(call, operand) or 0
        if entry.out:
            call.vcpu.write_virtual(address, operand.pack_over(data, call.abi))
        return result
    except XenError as error:
        return -error.code
