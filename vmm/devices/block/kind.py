"""Disks: `--disk`, xenbus's vbd, virtio-blk."""

from typing import TYPE_CHECKING

from vmm.devices.block.spec import FORM, Disk, device_name, device_number, parse_disk
from vmm.devices.kind import Bus, DeviceKind

if TYPE_CHECKING:
    from vmm.devices.block.backend import BlockBackend
    from vmm.devices.block.virtio import BlockDevice

MAX_VIRTIO_QUEUES = 8
_LAST = 702  # xvda to xvdzz


def _xen(disk: Disk, handle: int, vcpus: int) -> "BlockBackend":
    from vmm.devices.block.backend import open_disk

    return open_disk(disk, vcpus)


def _virtio(disk: Disk, handle: int, vcpus: int) -> "BlockDevice":
    from vmm.devices.block.backend import open_image
    from vmm.devices.block.virtio import BlockDevice

    image = open_image(disk)
    queues = min(disk.queues or vcpus, MAX_VIRTIO_QUEUES)
    return BlockDevice(disk.path.name, image, queues, image.close, discard=disk.discard, zeroes=image.discard_zeroes)


def _named(handle: int) -> str:
    return next((name for name in map(device_name, range(_LAST)) if device_number(name) == handle), str(handle))


KIND = DeviceKind(
    name="disk",
    noun="disk",
    xenbus="vbd",
    form=FORM,
    parse=lambda text, index: parse_disk(text, device_name(index)),
    handle=lambda disk: disk.number,
    handle_named=device_number,
    named=_named,
    open={Bus.XENBUS: _xen, Bus.PCI: _virtio},
    modules={Bus.XENBUS: ("xen_blkfront", "crc32c_generic", "ext4"), Bus.PCI: ("virtio_blk", "crc32c_generic", "ext4")},
)
