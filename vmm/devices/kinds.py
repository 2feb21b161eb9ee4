"""The kinds of devices that a user may ask for: a package each, and a row here.

A package is imported when somebody asks for one of its devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vmm.devices.kind import DeviceKind, Spec


def _disk() -> DeviceKind:
    from vmm.devices.block.kind import KIND

    return KIND


def _net() -> DeviceKind:
    from vmm.devices.net.kind import KIND

    return KIND


def _share() -> DeviceKind:
    from vmm.devices.ninep.kind import KIND

    return KIND


class Row(NamedTuple):
    """What is known of a kind before its package is imported; the options and the commands on a running guest follow."""

    load: Callable[[], DeviceKind]
    what: str
    """As in `give a running guest ...`."""
    help: str
    """Of its option."""
    metavar: str
    example: str
    """What one might write behind the option."""
    named_by: str
    """How a user calls one of them."""


KINDS: dict[str, Row] = {
    "disk": Row(
        _disk, "a disk",
        "a disk, the first one xvda: ro, name=xvdc, direct (no host cache), queues=N, nodiscard, format=qcow2",
        "PATH[,OPTION...]", "data.img,ro", "xvdb, say",
    ),
    "net": Row(
        _net, "a network card",
        "a network card: tap, tap:NAME, bridge:NAME, or user (passt: needs no root); mac=ADDRESS, mtu=N, queues=N,"
        " and for user hostfwd=tcp::8080-:80",
        "KIND[,OPTION...]", "user", "0 for the first",
    ),
    "share": Row(
        _share, "a folder",
        "a folder of the host's, for `mount -t 9p -o trans=xen TAG DIR`: tag=NAME (default share0), ro",
        "PATH[,OPTION...]", "src,ro", "0 for the first",
    ),
}  # fmt: skip
"""By the name of the option: `--disk`, `attach-disk`, `vmm.Guest(disks=...)`."""


def kind_of(spec: Spec) -> DeviceKind:
    """The row of a device."""
    return KINDS[spec.device].load()


def parse_specs(name: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """Specs of one kind from what its option was given, in order; imports nothing where there are none.  UsageError."""
    return tuple(KINDS[name].load().parse(text, index) for index, text in enumerate(texts)) if texts else ()
