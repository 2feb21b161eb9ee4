"""What a guest without privileges may ask of Xen, with arguments that are right, at an edge, or hostile.

Numbers and layouts are those of Xen's public headers (xen/include/public).
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from tests.differential.programs import ARENA, EDGE, FRAMES_GFN, FRAMES_PAGES, HOLE, PLAY_GFN, PLAY_PAGES, RUNSTATE

MEMORY_OP, SET_TIMER_OP, XEN_VERSION, CONSOLE_IO, GRANT_TABLE_OP, VM_ASSIST = 12, 15, 17, 18, 20, 21
VCPU_OP, XSM_OP, SCHED_OP, EVENT_CHANNEL_OP, PHYSDEV_OP, HVM_OP = 24, 27, 29, 32, 33, 34
SYSCTL, DOMCTL, MULTICALL, PLATFORM_OP = 35, 36, 13, 7

ARGUMENT, SECOND, BUFFER = ARENA, ARENA + 0x400, ARENA + 0x800
"""Where structures, what they point to, and results lie."""
DOMID_SELF = 0x7FF0
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


class Pool(NamedTuple):
    """Values of a kind: those that make sense, and those that may not."""

    good: Sequence[int]
    bad: Sequence[int] = ()
    odds: float = 0.2
    """How often a bad one is taken."""

    def pick(self, random: Random) -> int:
        """One of them."""
        return random.choice(self.bad if self.bad and random.random() < self.odds else self.good)


ZERO = Pool((0,), (1, U32), 0.03)
OUT = Pool((0,))
DOMID = Pool((DOMID_SELF,) * 3 + (0,), (99, 0x7FF1, 0x7FF2, 0x7FF3, 0x7FF4, 0x7FFF, 0x8000, 0xFFFF))
SELF = Pool((DOMID_SELF,), (*DOMID.bad, 0), 0.1)
OTHERS = Pool((DOMID_SELF,), (99, 0x7FF1, 0x7FF4, 0xFFFF), 0.3)
"""Whose grants are asked for: nobody's that there is.  (Under pyvmm a guest cannot map its own.)"""
PORT = Pool((3, 3, 3, 4, 4, 5, 6, 7, 8), (0, 30, 31, 63, 64, 1023, 4095, 4096, 131071, 131072, U32))
VCPU = Pool((0,), (1, 2, 127, 128, 8192, U32), 0.15)
VIRQ = Pool((0, 1, 8, 9, 13), (2, 3, 4, 7, 15, 16, 23, 24, 31, U32))
REF = Pool((8, 8, 9, 10, 11), (12, 511, 512, 1023, 32767, 32768, U32))
HANDLE = Pool((0, 0, 1, 2), (3, 100, 0x7FFFFFFF, U32))
PLAY = Pool([PLAY_GFN + page for page in range(PLAY_PAGES)], (HOLE >> 12, 0xFED00, 1 << 20, 1 << 36, 1 << 52, U64), 0.1)
FRAMES = Pool([FRAMES_GFN + page for page in range(FRAMES_PAGES)], PLAY.bad, 0.1)
COUNT = Pool((1, 1, 1, 2, 3), (0, 4, 17))
NOTHING = 0x50000
"""A gfn that no program puts anything at."""
POINTER = Pool((BUFFER,), (HOLE, 1 << 32, 1 << 47, U64 - 7, EDGE), 0.1)
ADDRESS = Pool((ARGUMENT,), (HOLE, 1 << 32, 1 << 46, 1 << 47, U64 - 7, EDGE), 0.05)


Fields = dict[str, tuple[int, Pool]]
"""Of a structure, by name: its size in bytes, and what may stand there."""


class Call(NamedTuple):
    """A sub-operation of a hypercall that takes one structure."""

    name: str
    number: int
    command: int
    fields: Fields


_EVTCHN = [
    ("bind_interdomain", 0, dict(remote_dom=(2, DOMID), pad=(2, ZERO), remote_port=(4, PORT), local_port=(4, OUT))),
    ("bind_virq", 1, dict(virq=(4, VIRQ), vcpu=(4, VCPU), port=(4, OUT))),
    ("bind_pirq", 2, dict(pirq=(4, Pool((0, 1, 16, 255))), flags=(4, ZERO), port=(4, OUT))),
    ("close", 3, dict(port=(4, PORT))),
    ("send", 4, dict(port=(4, PORT))),
    ("status", 5, dict(dom=(2, SELF), pad=(2, ZERO), port=(4, PORT), status=(4, OUT), vcpu=(4, OUT), u=(8, OUT))),
    ("alloc_unbound", 6, dict(dom=(2, SELF), remote_dom=(2, DOMID), port=(4, OUT))),
    ("bind_ipi", 7, dict(vcpu=(4, VCPU), port=(4, OUT))),
    ("bind_vcpu", 8, dict(port=(4, PORT), vcpu=(4, VCPU))),
    ("unmask", 9, dict(port=(4, PORT))),
    ("reset", 10, dict(dom=(2, Pool((0, 99, 0x7FF1, 0x7FF4, 0xFFFF))))),
    (
        "init_control",
        11,
        dict(gfn=(8, Pool((NOTHING, 1 << 40, U64))), offset=(4, Pool((0, 8, 4, 4088, 4096))), vcpu=(4, VCPU)),
    ),
    ("expand_array", 12, dict(gfn=(8, PLAY))),
    ("set_priority", 13, dict(port=(4, PORT), priority=(4, Pool((0, 7, 15, 16, U32))))),
    ("reset_cont", 14, dict(dom=(2, Pool((0, 99, 0x7FF1, 0x7FF4, 0xFFFF))))),
    ("unknown", 99, dict(port=(4, PORT))),
]
_TABLE_FLAGS = Pool((2, 2, 2, 6), (0, 1, 3, 4, 18, 34, U32))
_GRANT = [
    (
        "map_grant_ref", 0,
        dict(
            host=(8, Pool([(PLAY_GFN + page) << 12 for page in range(4)], (1, HOLE, 1 << 50))), flags=(4, _TABLE_FLAGS),
            ref=(4, REF), dom=(2, OTHERS), status=(2, OUT), handle=(4, OUT), bus=(8, OUT),
        ),
    ),
    (
        "unmap_grant_ref", 1,
        dict(
            host=(8, Pool([(PLAY_GFN + page) << 12 for page in range(4)], (0, 1, HOLE))), bus=(8, OUT),
            handle=(4, HANDLE), status=(2, OUT), pad=(2, OUT),
        ),
    ),
    (
        "setup_table", 2,
        dict(dom=(2, SELF), pad=(2, OUT), frames=(4, Pool((1, 2, 4), (0, 64, 65, 1024, U32))), status=(2, OUT), pad2=(6, OUT), list=(8, POINTER)),
    ),
    ("dump_table", 3, dict(dom=(2, SELF), status=(2, OUT))),
    ("transfer", 4, dict(gfn=(8, PLAY), dom=(2, DOMID), pad=(2, OUT), ref=(4, REF), status=(2, OUT), pad2=(6, OUT))),
    (
        "copy", 5,
        dict(
            source=(8, Pool((8, 9, 10, PLAY_GFN, PLAY_GFN + 1, ARENA + 0x1000 >> 12), PLAY.bad)), sdom=(2, SELF),
            soffset=(2, Pool((0, 16, 4080), (4095, 4096, 65535))), pad=(4, OUT),
            dest=(8, Pool((8, 9, 10, PLAY_GFN, PLAY_GFN + 1, BUFFER >> 12), PLAY.bad)), ddom=(2, SELF),
            doffset=(2, Pool((BUFFER & 0xFFF,), (4095, 4096, 65535))), pad2=(4, OUT),
            len=(2, Pool((0, 1, 16, 64), (4096, 4097, 65535))), flags=(2, Pool((0, 1, 2, 3), (4, 7, 65535))),
            status=(2, OUT), pad3=(2, OUT),
        ),
    ),
    ("query_size", 6, dict(dom=(2, DOMID), pad=(2, OUT), frames=(4, OUT), max=(4, OUT), status=(2, OUT), pad2=(2, OUT))),
    (
        "unmap_and_replace", 7,
        dict(host=(8, Pool((PLAY_GFN << 12,))), new=(8, Pool((PLAY_GFN + 1 << 12, 0))), handle=(4, HANDLE), status=(2, OUT), pad=(2, OUT)),
    ),
    (
        "get_status_frames", 9,
        dict(frames=(4, Pool((1, 2), (0, 65, U32))), dom=(2, SELF), status=(2, OUT), list=(8, POINTER)),
    ),
    ("get_version", 10, dict(dom=(2, DOMID), pad=(2, OUT), version=(4, OUT))),
    ("swap_grant_ref", 11, dict(a=(4, REF), b=(4, REF), status=(2, OUT), pad=(2, OUT))),
    (
        "cache_flush", 12,
        dict(a=(8, Pool((PLAY_GFN << 12, 8))), offset=(2, Pool((0, 64), (4096,))), length=(2, Pool((0, 64), (4096, 65535))), op=(4, Pool((1, 2, 3, 0x80000001), (0, 4)))),
    ),
    ("unknown", 13, dict(a=(8, OUT))),
]  # fmt: skip
_EXTENTS = dict(
    list=(8, Pool((SECOND,) * 9 + (HOLE,))), count=(8, Pool((1, 2, 4), (0, 3, 1 << 32, U64, 1 << 60))),
    order=(4, Pool((0,), (1, 9, 18, 31, U32))), flags=(4, Pool((0,), (32, 1 << 16, 1 << 17, U32), 0.1)), dom=(2, SELF),
    pad=(6, OUT),
)  # fmt: skip
_MEMORY = [
    ("decrease_reservation", 1, _EXTENTS),
    ("maximum_ram_page", 2, {}),
    ("current_reservation", 3, dict(dom=(2, DOMID))),
    ("maximum_reservation", 4, dict(dom=(2, DOMID))),
    ("machphys_mfn_list", 5, dict(max=(4, COUNT), pad=(4, OUT), list=(8, POINTER), count=(4, OUT), pad2=(4, OUT))),
    ("populate_physmap", 6, _EXTENTS),
    (
        "add_to_physmap", 7,
        dict(
            dom=(2, SELF), size=(2, Pool((0, 1), (2,))), space=(4, Pool((0, 1), (2, 3, 4, 5, U32))),
            idx=(8, Pool((0, 0, 1, PLAY_GFN, PLAY_GFN + 1), (0x8000000000000000, 0x8000000000000001, U64))), gfn=(8, FRAMES),
        ),
    ),
    ("translate_gpfn_list", 8, dict(dom=(2, DOMID), pad=(6, OUT), count=(8, COUNT), list=(8, POINTER), out=(8, POINTER))),
    ("memory_map", 9, dict(count=(4, Pool((0, 1, 20), (U32,))), pad=(4, OUT), list=(8, Pool((HOLE, U64 - 7))))),
    ("machine_memory_map", 10, dict(count=(4, Pool((0, 1, 20))), pad=(4, OUT), list=(8, POINTER))),
    ("set_memory_map", 13, dict(dom=(2, DOMID), pad=(6, OUT), count=(4, Pool((0, 1, 129))), pad2=(4, OUT), list=(8, POINTER))),
    ("machphys_mapping", 12, dict(a=(8, OUT), b=(8, OUT), c=(8, OUT))),
    ("exchange", 11, {**_EXTENTS, **{f"out_{name}": field for name, field in _EXTENTS.items()}, "exchanged": (8, Pool((0,), (1, U64)))}),
    ("maximum_gpfn", 14, dict(dom=(2, Pool((0, 99, 0x7FF1, 0x8000, 0xFFFF))))),
    ("remove_from_physmap", 15, dict(dom=(2, SELF), pad=(6, OUT), gfn=(8, PLAY))),
    ("set_pod_target", 16, dict(target=(8, OUT), a=(8, OUT), b=(8, OUT), c=(8, OUT), dom=(2, DOMID), pad=(6, OUT))),
    ("get_pod_target", 17, dict(target=(8, OUT), a=(8, OUT), b=(8, OUT), c=(8, OUT), dom=(2, DOMID), pad=(6, OUT))),
    ("get_sharing_freed_pages", 18, {}),
    ("get_sharing_shared_pages", 19, {}),
    ("paging_op", 20, dict(op=(1, COUNT), dom=(2, DOMID), pad=(13, OUT))),
    ("access_op", 21, dict(op=(1, Pool((0, 1, 2))), access=(1, Pool((0, 7))), dom=(2, DOMID), nr=(4, COUNT), pfn=(8, PLAY))),
    ("sharing_op", 22, dict(op=(1, COUNT), dom=(2, DOMID), pad=(61, OUT))),
    (
        "add_to_physmap_batch", 23,
        dict(
            dom=(2, SELF), space=(2, Pool((0, 1), (2, 3, 4, 65535))), size=(2, Pool((1, 2, 4), (0,))), u=(2, ZERO),
            idxs=(8, Pool((SECOND + 0x80,) * 9 + (HOLE,))), gpfns=(8, Pool((SECOND,) * 9 + (HOLE,))), errs=(8, POINTER),
        ),
    ),
    ("claim_pages", 24, dict(list=(8, OUT), count=(8, Pool((0, 1))), order=(4, ZERO), flags=(4, ZERO), dom=(2, DOMID), pad=(6, OUT))),
    ("reserved_device_memory_map", 27, dict(flags=(4, ZERO), count=(4, COUNT), list=(8, POINTER), dev=(8, OUT))),
    ("get_vnumainfo", 26, dict(dom=(2, DOMID), pad=(2, ZERO), nodes=(4, COUNT), vcpus=(4, COUNT), regions=(4, COUNT), a=(8, POINTER), b=(8, POINTER), c=(8, POINTER))),
    (
        "acquire_resource", 28,
        dict(
            dom=(2, DOMID), type=(2, Pool((0, 1, 2), (3, 65535))), id=(4, Pool((0, 1), (2, U32))), count=(4, Pool((0, 1, 2))), pad=(4, ZERO),
            frame=(8, Pool((0, 1), (64, U64))), list=(8, Pool((0, SECOND, SECOND, HOLE))),
        ),
    ),
    ("unknown", 29, {}),
    ("unknown", 63, {}),
]  # fmt: skip
_VERSION = [
    ("version", 0, {}), ("extraversion", 1, {}), ("compile_info", 2, {}), ("capabilities", 3, {}), ("changeset", 4, {}),
    ("platform_parameters", 5, {}), ("get_features", 6, dict(index=(4, Pool((0, 0, 1, 2, U32))), map=(4, OUT))),
    ("pagesize", 7, {}), ("guest_handle", 8, {}), ("commandline", 9, {}),
    ("build_id", 10, dict(length=(4, Pool((0, 20, 64, 10)))), ), ("unknown", 11, {}), ("unknown", 99, {}),
]  # fmt: skip
_VCPU = [
    ("initialise", 0, dict(a=(8, OUT))),
    ("up", 1, {}),
    ("is_up", 3, {}),
    ("get_runstate_info", 4, {}),
    ("register_runstate", 5, dict(address=(8, Pool((RUNSTATE, RUNSTATE + 64, 0, HOLE))))),
    (
        "set_periodic_timer",
        6,
        dict(period=(8, Pool((1_000_000_000, 10_000_000), (0, 1, 999_999, 1_000_000, 1 << 63, U64)))),
    ),
    ("stop_periodic_timer", 7, {}),
    (
        "set_singleshot_timer",
        8,
        dict(timeout=(8, Pool((1 << 62,), (0, 1, U64))), flags=(4, Pool((0, 1), (2, U32))), pad=(4, OUT)),
    ),
    ("stop_singleshot_timer", 9, {}),
    ("get_physid", 12, dict(id=(8, OUT))),
    ("register_time", 13, dict(address=(8, Pool((RUNSTATE + 128, 0, HOLE))))),
    ("register_vcpu_info", 10, dict(gfn=(8, Pool((NOTHING, U64))), offset=(4, Pool((0, 64, 4090))), pad=(4, OUT))),
    ("unknown", 14, {}),
    ("unknown", 99, {}),
]
_SCHED = [
    ("yield", 0, {}),
    (
        "poll",
        3,
        dict(
            ports=(8, Pool((SECOND,) * 4 + (HOLE,))),
            count=(4, Pool((0, 1, 2), (128, 129, U32))),
            pad=(4, OUT),
            timeout=(8, Pool((1, 1000))),
        ),
    ),
    ("remote_shutdown", 4, dict(dom=(2, Pool((0, 99, 0x7FF1, 0x7FF4, 0xFFFF))), pad=(2, OUT), reason=(4, COUNT))),
    ("watchdog", 6, dict(id=(4, Pool((0, 1, 2), (3, 7, U32))), timeout=(4, Pool((1000,), (U32,), 0.1)))),
    ("pin_override", 7, dict(pcpu=(4, Pool((0, U32, 77))))),
    ("unknown", 8, dict(a=(4, OUT))),
]
_PARAM = Pool((0, 1, 2, 17, 18), (3, 4, 5, 6, 9, 10, 11, 12, 13, 15, 16, 19, 20, 26, 32, 33, 34, 35, 36, 37, 38, U32), 0.5)
_HVM = [
    ("set_param", 0, dict(dom=(2, SELF), pad=(2, OUT), index=(4, Pool([index for index in _PARAM.bad if index != 16])), value=(8, Pool((0, 1, U64, PLAY_GFN))))),
    ("get_param", 1, dict(dom=(2, DOMID), pad=(2, OUT), index=(4, _PARAM), value=(8, OUT))),
    ("flush_tlbs", 5, {}),
    ("pagetable_dying", 9, dict(dom=(2, SELF), pad=(6, OUT), gpa=(8, OUT))),
    ("get_time", 10, {}),
    ("xentrace", 11, dict(event=(2, Pool((1, 0xFFF, 0x1000))), bytes=(2, Pool((0, 8, 28, 29))), data=(28, OUT))),
    ("get_mem_type", 15, dict(dom=(2, DOMID), type=(2, OUT), pad=(4, OUT), gfn=(8, PLAY))),
    ("set_evtchn_upcall_vector", 23, dict(vcpu=(4, VCPU), vector=(1, Pool((0x20, 0xFE), (0, 0x0F, 0x10))), pad=(3, OUT))),
    ("guest_request_vm_event", 24, {}),
    ("altp2m", 25, dict(version=(4, Pool((1, 0, 2))), cmd=(4, COUNT), dom=(2, SELF), pad=(62, OUT))),
    ("unknown", 26, dict(a=(8, OUT))),
    ("unknown", 99, dict(a=(8, OUT))),
]  # fmt: skip
_PHYSDEV = [
    ("eoi", 12, dict(irq=(4, Pool((0, 1, 16, U32))))),
    ("irq_status_query", 5, dict(irq=(4, Pool((0, 1, 16, U32))), flags=(4, OUT))),
    ("set_iopl", 6, dict(iopl=(4, Pool((0, 1, 3, 4))))),
    ("set_iobitmap", 7, dict(bitmap=(8, OUT), ports=(4, COUNT))),
    ("apic_read", 8, dict(a=(8, OUT), reg=(4, OUT), value=(4, OUT))),
    ("alloc_irq_vector", 10, dict(irq=(4, OUT), vector=(4, OUT))),
    ("map_pirq", 13, dict(dom=(2, SELF), pad=(2, OUT), type=(4, Pool((0, 1, 3))), index=(4, COUNT), pirq=(4, Pool((0, 5, U32))), bus=(4, OUT), devfn=(4, OUT), entry=(4, OUT), pad2=(4, OUT), base=(8, OUT))),
    ("unmap_pirq", 14, dict(dom=(2, SELF), pad=(2, OUT), pirq=(4, COUNT))),
    ("manage_pci_add", 15, dict(a=(2, OUT))),
    ("pirq_eoi_gmfn_v1", 17, dict(gfn=(8, PLAY))),
    ("get_free_pirq", 23, dict(type=(4, COUNT), pirq=(4, OUT))),
    ("pci_device_add", 25, dict(a=(8, OUT))),
    ("unknown", 40, dict(a=(8, OUT))),
]  # fmt: skip


def _calls(hypercall: str, number: int, table: list[tuple[str, int, Fields]]) -> list[Call]:
    return [
        Call(f"{hypercall}.{name if name != 'unknown' else command}", number, command, fields)
        for name, command, fields in table
    ]


FAMILIES = {
    "events": _calls("event_channel_op", EVENT_CHANNEL_OP, _EVTCHN),
    "grants": _calls("grant_table_op", GRANT_TABLE_OP, _GRANT),
    "memory": _calls("memory_op", MEMORY_OP, _MEMORY),
    "others": [
        *_calls("xen_version", XEN_VERSION, _VERSION),
        *_calls("vcpu_op", VCPU_OP, _VCPU),
        *_calls("sched_op", SCHED_OP, _SCHED),
        *_calls("hvm_op", HVM_OP, _HVM),
        *_calls("physdev_op", PHYSDEV_OP, _PHYSDEV),
    ],
}
_KNOWN = (MEMORY_OP, MULTICALL, SET_TIMER_OP, XEN_VERSION, CONSOLE_IO, GRANT_TABLE_OP, VM_ASSIST, VCPU_OP, SCHED_OP)
IRET = 23
NOT_CALLS = [n for n in range(64) if n not in (*_KNOWN, EVENT_CHANNEL_OP, PHYSDEV_OP, HVM_OP, IRET)]
"""What is no hypercall, or none for such a guest."""
CPUID_LEAVES = [0x40000000 + leaf for leaf in (0, 1, 2, 3, 4, 5, 6, 7, 0x100)]
MSRS = [0x40000000, 0x40000001, 0x40000010, 0x400000FF, 0x40000100]
