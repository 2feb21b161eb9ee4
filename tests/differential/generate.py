"""Programs by their number and a seed: sequences of calls that build state, and what brings a guest back."""

import struct
from collections.abc import Iterator
from random import Random

from tests.differential.calls import (
    ADDRESS,
    ARGUMENT,
    BUFFER,
    CONSOLE_IO,
    COUNT,
    CPUID_LEAVES,
    DOMID,
    DOMID_SELF,
    EVENT_CHANNEL_OP,
    FAMILIES,
    FRAMES,
    GRANT_TABLE_OP,
    MEMORY_OP,
    MSRS,
    MULTICALL,
    NOT_CALLS,
    OUT,
    PLAY,
    PORT,
    REF,
    SCHED_OP,
    SECOND,
    SELF,
    SET_TIMER_OP,
    U32,
    U64,
    VCPU,
    VCPU_OP,
    VM_ASSIST,
    XEN_VERSION,
    ZERO,
    Call,
)
from tests.differential.programs import (
    ARENA,
    EDGE,
    GRANT_TABLE,
    HOLE,
    OWN_DOMID,
    PLAY_GFN,
    PLAY_PAGES,
    SHARED_INFO,
    Program,
    Range,
    Step,
)

_LOOKED_AT = 64
_MOST = 3
"""Structures in an array."""


def program(number: int, seed: int, length: int) -> Program:
    """The program of that number, which prints at least `length` lines: the same for the same seed."""
    random = Random(f"{seed} {number}")
    theme = random.choice([*FAMILIES, "events", "grants", "memory", "mixed"])
    steps: list[Step] = []
    while sum(1 for step in steps if step.name) < length:
        steps += _some(random, theme)
    return Program(number, (*CLEAN, *steps))


def _some(random: Random, theme: str) -> Iterator[Step]:
    if theme == "mixed" or random.random() < 0.15:
        theme = random.choice(list(FAMILIES))
    if theme == "events" and random.random() < 0.12:
        yield random.choice(SHOWN)
    elif theme == "grants" and random.random() < 0.35:
        yield from _grant(random)
    elif theme == "others" and random.random() < 0.3:
        yield from _odd(random)
    else:
        yield from _structured(random, random.choice(FAMILIES[theme]))


def _bytes(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def _structured(random: Random, call: Call) -> Iterator[Step]:
    """A call that takes a structure, an array of them, or an address alone."""
    count = COUNT.pick(random) if call.number == GRANT_TABLE_OP else 1
    size = sum(size for size, _ in call.fields.values())
    said: list[str] = []
    yield Step.write(ARGUMENT, bytes(0x400))
    for index in range(max(min(count, _MOST), 1)):
        data, own = b"", None
        for name, (width, pool) in call.fields.items():
            value = pool.pick(random)
            is_own = pool in (DOMID, SELF) and random.random() < 0.1
            if is_own:
                own = len(data)
            data += _bytes(value, width)
            if is_own or value or pool not in (OUT, ZERO):
                said.append(f"{name}={'own' if is_own else hex(value)}")
        if data:
            yield Step.write(ARGUMENT + index * size, data)
        if own is not None:
            yield Step.copy(ARGUMENT + index * size + own, OWN_DOMID, 2)
    if call.number in (MEMORY_OP, SCHED_OP) and size:  # what a structure may point to
        pool, width = (FRAMES if "add_to" in call.name else PLAY, 8) if call.number == MEMORY_OP else (PORT, 4)
        values = [pool.pick(random) for _ in range(4)]
        yield Step.write(SECOND, b"".join(_bytes(value, width) for value in values))
        yield Step.write(SECOND + 0x80, struct.pack("<4Q", *(random.choice((0, 0, 1, 2)) for _ in range(4))))
        said.append("list=" + "/".join(map(hex, values)))
    address = ADDRESS.pick(random)
    if not size and address == ARGUMENT:
        address = BUFFER
    yield Step.write(BUFFER, bytes(_LOOKED_AT))
    arguments = [call.command, address]
    if call.number == GRANT_TABLE_OP:
        arguments.append(count)
        said.append(f"count={count:#x}")
    elif call.number == VCPU_OP:
        arguments.insert(1, vcpu := VCPU.pick(random))
        said.append(f"vcpu={vcpu:#x}")
    if address not in (ARGUMENT, BUFFER):
        said.append(f"at={address & U64:#x}")
    watched = [Range(ARGUMENT, min(size * min(count, _MOST), 255)), Range(BUFFER, _LOOKED_AT), Range(SECOND, _LOOKED_AT)]
    yield Step.call(f"{call.name}({', '.join(said)})", call.number, arguments, watched)


def _grant(random: Random) -> Iterator[Step]:
    """An entry of the guest's own grant table (version 1): for itself, for dom0, for nobody."""
    ref, gfn = random.choice(REF.good), PLAY.pick(random)
    flags = random.choice((1, 1, 1, 1, 5, 0, 2, 3))
    place = GRANT_TABLE + 8 * ref
    domid = random.choice((0, 99, None, None, None))
    yield Step.write(place, struct.pack("<HHI", flags, domid or 0, gfn & U32))
    if domid is None:
        yield Step.copy(place + 2, OWN_DOMID, 2)
    yield Step.show(f"grant {ref:#x}(flags={flags}, dom={'own' if domid is None else domid}, gfn={gfn:#x})", place, 2)


def _odd(random: Random) -> Iterator[Step]:
    """What takes no structure of its own."""
    kind = random.randrange(8)
    if kind == 0:
        number = random.choice(NOT_CALLS)
        yield Step.call(f"hypercall_{number}()", number, (random.choice((0, 1, ARGUMENT)), ARGUMENT, 1))
    elif kind == 1:
        yield Step.cpuid(random.choice(CPUID_LEAVES), random.choice((0, 0, 1, 2, 3)))
    elif kind == 2:
        yield Step.rdmsr(random.choice(MSRS))
    elif kind == 3:
        yield Step.wrmsr(random.choice(MSRS[1:]), random.choice((0, 1, U64)))
    elif kind == 4:
        command, which = random.choice((0, 1, 2)), random.choice((0, 1, 2, 3, 4, 5, 6, 63, 64, U32))
        yield Step.call(f"vm_assist(cmd={command}, type={which:#x})", VM_ASSIST, (command, which))
    elif kind == 5:
        timeout = random.choice((0, 1, 1 << 62, U64))
        yield Step.call(f"set_timer_op({timeout:#x})", SET_TIMER_OP, (timeout,))
    elif kind == 6:
        command, length, place = random.choice(
            ((0, 0, BUFFER), (0, 4, HOLE), (1, 16, BUFFER), (2, 1, BUFFER), (1, 4, HOLE))
        )
        name = f"console_io({command}, {length}, {place:#x})"
        yield Step.call(name, CONSOLE_IO, (command, length, place), [Range(BUFFER, 16)])
    else:
        yield from _multicall(random)


_INNER = [
    (XEN_VERSION, 0, 0), (XEN_VERSION, 5, BUFFER), (XEN_VERSION, 99, 0), (MULTICALL, ARGUMENT, 1), (63, 0, 0),
    (EVENT_CHANNEL_OP, 4, SECOND), (U64, 1, 2), (SCHED_OP, 0, 0), (XEN_VERSION, 1, HOLE),
]  # fmt: skip


def _multicall(random: Random) -> Iterator[Step]:
    entries = [random.choice(_INNER) for _ in range(random.randrange(4))]
    yield Step.write(ARGUMENT, b"".join(struct.pack("<8Q", op, 0x55, *more, 0, 0, 0, 0) for op, *more in entries))
    yield Step.write(SECOND, struct.pack("<Q", PORT.pick(random)))
    count = random.choice((len(entries),) * 4 + (0,))
    place = random.choice((ARGUMENT,) * 6 + (HOLE,))
    said = "; ".join(",".join(hex(value) for value in entry) for entry in entries)
    watched = [Range(ARGUMENT, 64 * max(len(entries), 1)), Range(BUFFER, 16)]
    yield Step.call(f"multicall({said}; count={count}, at={place:#x})", MULTICALL, (place, count), watched)


# ------------------------------------------------------------------------------- looking, and before a program

SHOWN = [
    Step.show("shared_info.vcpu_info[0].evtchn_upcall_pending()", SHARED_INFO, 1),
    Step.show("shared_info.vcpu_info[0].evtchn_pending_sel()", SHARED_INFO + 8, 8),
    Step.show("shared_info.evtchn_pending[0]()", SHARED_INFO + 0x800, 8),
    Step.show("shared_info.evtchn_mask[0]()", SHARED_INFO + 0xA00, 8),
]
_SCRATCH = ARENA + 0xF00
_SPARE = ARENA + 0x1_4000
"""Where the grant table's other frames are put back to."""
_PORTS = range(3, 41)
"""Those that programs may have opened; the first two are xenstore's and the console's."""


def _quiet(number: int, command: int, data: bytes, *more: int) -> Iterator[Step]:
    yield Step.write(_SCRATCH, data)
    yield Step.quiet_call(number, (command, _SCRATCH, *more))


def _clean() -> Iterator[Step]:
    for port in _PORTS:
        yield from _quiet(EVENT_CHANNEL_OP, 3, struct.pack("<I", port))
    for handle in range(4):
        for page in range(4):
            yield from _quiet(GRANT_TABLE_OP, 1, struct.pack("<QQIhxx", (PLAY_GFN + page) << 12, 0, handle, 0), 1)
    for index, place in enumerate((GRANT_TABLE, *range(_SPARE, _SPARE + 6 * 0x1000, 0x1000))):
        yield from _quiet(MEMORY_OP, 7, struct.pack("<HHIQQ", DOMID_SELF, 0, 1, index, place >> 12))
    yield from _quiet(MEMORY_OP, 7, struct.pack("<HHIQQ", DOMID_SELF, 0, 0, 0, SHARED_INFO >> 12))
    for gfn in (*PLAY.bad, *PLAY.good, *FRAMES.good):
        yield Step.write(_SCRATCH + 64, struct.pack("<Q", gfn))
        yield from _quiet(MEMORY_OP, 1, struct.pack("<QQIIH6x", _SCRATCH + 64, 1, 0, 0, DOMID_SELF))
    for page in range(PLAY_PAGES):
        yield from _quiet(MEMORY_OP, 15, struct.pack("<H6xQ", DOMID_SELF, PLAY_GFN + page))
        yield Step.write(_SCRATCH + 64, struct.pack("<Q", PLAY_GFN + page))
        yield from _quiet(MEMORY_OP, 6, struct.pack("<QQIIH6x", _SCRATCH + 64, 1, 0, 0, DOMID_SELF))
    for command in (7, 9):
        yield Step.quiet_call(VCPU_OP, (command, 0, 0))
    for watchdog in (1, 2):
        yield from _quiet(SCHED_OP, 6, struct.pack("<II", watchdog, 0))
    yield Step.write(_SCRATCH + 64, struct.pack("<QQIQQI", 0, 0xA0000, 1, 0xA0000, 0x60000, 2))
    yield from _quiet(MEMORY_OP, 13, struct.pack("<H6xI4xQ", DOMID_SELF, 2, _SCRATCH + 64))
    for place in (SHARED_INFO, SHARED_INFO + 0x800, SHARED_INFO + 0xA00):
        yield Step.write(place, bytes([6 if place == SHARED_INFO + 0xA00 else 0]) + bytes(15))  # xenstored may signal
    yield Step.write(GRANT_TABLE + 8 * 8, bytes(8 * 8))
    yield Step.write(EDGE, bytes(4))
    yield Step.write(ARGUMENT, bytes(0xF00))


CLEAN = tuple(_clean())
"""What brings a guest back to where the program before it began, as far as a guest can."""


def _set_up() -> Iterator[Step]:
    yield from _quiet(MEMORY_OP, 15, struct.pack("<H6xQ", DOMID_SELF, (EDGE >> 12) + 1))
    yield from _quiet(EVENT_CHANNEL_OP, 6, struct.pack("<HHI", DOMID_SELF, DOMID_SELF, 0))
    yield Step.write(_SCRATCH + 16, struct.pack("<HHIIIHHI", DOMID_SELF, 0, 0, 0, 0, 0, 0, 0))
    yield Step.copy(_SCRATCH + 20, _SCRATCH + 4, 4)
    yield Step.quiet_call(EVENT_CHANNEL_OP, (5, _SCRATCH + 16))
    yield Step.copy(OWN_DOMID, _SCRATCH + 32, 2)
    yield Step.show("own domid()", OWN_DOMID, 2)


SET_UP = Program(0xFFFFFFFF, tuple(_set_up()))
"""What a guest does first."""
