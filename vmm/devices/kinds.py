"""The kinds of devices that a user may ask for: a package each, and a row here.

A package is imported when somebody asks for one of its devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vmm.devices.kind import Kind, Spec


def _disk() -> Kind:
    from vmm.devices.block.kind import KIND

    return KIND


def _net() -> Kind:
    from vmm.devices.net.kind import KIND

    return KIND


def _share() -> Kind:
    from vmm.devices.ninep.kind import KIND

    return KIND


KINDS: dict[str, Callable[[], Kind]] = {"disk": _disk, "net": _net, "share": _share}


def kind_of(spec: Spec) -> Kind:
    """The row of a device."""
    return KINDS[spec.device]()


def parse_specs(name: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """Specs of one kind from what its option was given, in order; imports nothing where there are none.  UsageError."""
    return tuple(KINDS[name]().parse(text, index) for index, text in enumerate(texts)) if texts else ()
