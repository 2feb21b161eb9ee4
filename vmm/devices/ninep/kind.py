"""Shared folders: `--share`, xenbus's 9pfs."""

from typing import TYPE_CHECKING

from vmm.devices.kind import Bus, DeviceKind
from vmm.devices.ninep.spec import FORM, Share, parse_share
from vmm.errors import UsageError

if TYPE_CHECKING:
    from vmm.devices.ninep.backend import ShareBackend


def _xen(share: Share, handle: int, vcpus: int) -> "ShareBackend":
    from vmm.devices.ninep.backend import ShareBackend

    return ShareBackend(share, handle)


def _handle_named(word: str) -> int:
    if not word.isdecimal():
        raise UsageError(f"a share is named by its number, 0 for the first, not {word!r}")
    return int(word)


KIND = DeviceKind(
    name="share",
    noun="share",
    xenbus="9pfs",
    form=FORM,
    parse=lambda text, index: parse_share(text, f"share{index}"),
    handle=lambda share: None,
    handle_named=_handle_named,
    named=str,
    open={Bus.XENBUS: _xen},
    modules={Bus.XENBUS: ("9pnet_xen", "9p")},
)
