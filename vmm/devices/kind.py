"""What there is to say of a kind of device: how it is written on a command line, which buses it can stand on, what
serves it there, and which drivers a guest's kernel needs for it.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol


class Bus(Enum):
    """What a device stands on; the value is what a sentence calls it."""

    XENBUS = "xenbus"
    PCI = "PCI"


class Spec(Protocol):
    """A device that somebody asks for, as data."""

    @property
    def device(self) -> str:
        """Its row's name."""
        ...


class DeviceKind(NamedTuple):
    """One kind of device."""

    name: str
    """As in `--disk` and `attach-disk`."""
    noun: str
    """As in a sentence."""
    xenbus: str
    """As in xenstore: `vbd`, `vif`, `9pfs`."""
    form: str
    """What is written behind the option."""
    parse: Callable[[str, int], Any]
    """A spec from such a text, for the device at a position among its kind.  UsageError."""
    handle: Callable[[Any], int | None]
    """The number that a spec asks for; None where any will do."""
    handle_named: Callable[[str], int]
    """The number that a user means by a word.  UsageError."""
    named: Callable[[int], str]
    """What a user calls the device of that number."""
    open: Mapping[Bus, Callable[[Any, int, int], Any]]
    """What serves it on a bus: from a spec, its number, and the guest's vCPUs.  PyvmmError."""
    modules: Mapping[Bus, tuple[str, ...]]
    """The drivers for it, by the names of Linux's modules."""
