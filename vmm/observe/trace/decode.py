"""A hypercall's arguments by name: what the registry and the structures say, and how each kind of value is written."""

from collections.abc import Callable
from enum import IntEnum

from vmm.xenabi.constants import (
    DOMID_SELF,
    EvtchnStatusKind,
    HvmParam,
    MapSpace,
    Runstate,
    ShutdownReason,
    VcpuHvmMode,
    Virq,
    VmAssist,
)
from vmm.xenabi.cstruct import Struct
from vmm.xenabi.hypercalls.registry import TABLE, Suboperations, entry_of

Show = Callable[[int], str]


def _named(kind: type[IntEnum]) -> Show:
    return lambda value: kind(value).name if value in kind._value2member_map_ else str(value)


def _domid(value: int) -> str:
    return "DOMID_SELF" if value == DOMID_SELF else str(value)


_BY_FIELD: dict[str, Show] = {
    **dict.fromkeys(("dom", "domid", "remote_dom", "u_dom"), _domid),
    **dict.fromkeys(
        (
            "mfn", "gpfn", "gpa", "addr", "buffer", "frame_list", "extent_start", "idxs", "gpfns", "errs", "ports",
            "call_list", "virt_start", "control_gfn", "array_gfn", "value", "submap", "vector", "mem_flags",
        ),
        hex,
    ),
    "virq": _named(Virq),
    "space": _named(MapSpace),
    "reason": _named(ShutdownReason),
    "mode": _named(VcpuHvmMode),
    "type": _named(VmAssist),
}  # fmt: skip
_BY_STRUCT: dict[tuple[str, str], Show] = {
    ("xen_hvm_param", "index"): _named(HvmParam),
    ("evtchn_status", "status"): _named(EvtchnStatusKind),
    ("vcpu_runstate_info", "state"): _named(Runstate),
}
_LONGEST_BYTES = 16


def fields_of(number: int, args: tuple[int, ...], operand: Struct | None) -> list[tuple[str, str]]:
    """Name and text of each argument; the raw words, without names, where the hypercall is not known."""
    entry = entry_of(number, args)
    if entry is None:
        return [("", hex(value)) for value in args]
    plain = args[1:] if isinstance(TABLE[number], Suboperations) else args
    found = [(name, _BY_FIELD.get(name, str)(value)) for name, value in zip(entry.names, plain, strict=False)]
    if entry.arg is not None:
        if operand is None:  # it could not be read
            return [*found, ("arg", hex(args[entry.at]))]
        found += [
            (name, _show(operand.C_NAME, name, getattr(operand, name)))
            for name in operand.FIELDS
            if not name.startswith("_") and not name.startswith("pad")
        ]
    return found


def _show(struct: str, field: str, value: int | bytes) -> str:
    if isinstance(value, bytes):
        return f"{value[:_LONGEST_BYTES].hex(' ')}{'...' if len(value) > _LONGEST_BYTES else ''}"
    show = _BY_STRUCT.get((struct, field)) or _BY_FIELD.get(field, str)
    return show(value)
