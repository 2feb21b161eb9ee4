"""Network cards: `--net`, xenbus's vif, virtio-net."""

from typing import TYPE_CHECKING

from vmm.devices.kind import Bus, DeviceKind
from vmm.devices.net.spec import FORM, Net, parse_net
from vmm.errors import UsageError

if TYPE_CHECKING:
    from vmm.devices.net.backend import NetBackend
    from vmm.devices.net.virtio import NetDevice


def _xen(net: Net, handle: int, vcpus: int) -> "NetBackend":
    from vmm.devices.net.backend import open_net

    return open_net(net, handle, vcpus)


def _virtio(net: Net, handle: int, vcpus: int) -> "NetDevice":
    from vmm.devices.net.backend import open_network
    from vmm.devices.net.virtio import NetDevice

    return NetDevice(net, open_network(net, queues=1))


def _handle_named(word: str) -> int:
    if not word.isdecimal():
        raise UsageError(f"a network card is named by its number, 0 for the first, not {word!r}")
    return int(word)


KIND = DeviceKind(
    name="net",
    noun="network card",
    xenbus="vif",
    form=FORM,
    parse=lambda text, index: parse_net(text),
    handle=lambda net: None,
    handle_named=_handle_named,
    named=str,
    open={Bus.XENBUS: _xen, Bus.PCI: _virtio},
    modules={Bus.XENBUS: ("xen_netfront",), Bus.PCI: ("virtio_net",)},
)
