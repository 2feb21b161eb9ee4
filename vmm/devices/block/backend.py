"""The vbd back end: what it offers in xenstore, and its queues.  Source: xen/include/public/io/blkif.h."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm.devices.block.image import RawImage
from vmm.devices.block.protocol import LAYOUTS, MAX_INDIRECT_SEGMENTS, PROTOCOLS, SECTOR_BYTES
from vmm.devices.block.queue import BlockQueue
from vmm.devices.block.spec import Disk
from vmm.devices.bus.xenbus import Frontend, FrontendError
from vmm.devices.counters import Totals
from vmm.devices.stopping import stop_all
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.values import XenError

if TYPE_CHECKING:
    from vmm.devices.block.nbd_image import NbdImage

MAX_RING_PAGE_ORDER = 4
MAX_QUEUES = 8
VDISK_READONLY = 4


def open_disk(disk: Disk, vcpus: int) -> "BlockBackend":
    """The back end of a disk that somebody asks for.  PyvmmError."""
    return BlockBackend(disk, open_image(disk), vcpus)


def open_image(disk: Disk) -> "RawImage | NbdImage":
    """What a disk's data are in.  PyvmmError."""
    if disk.format in (None, "raw"):
        return RawImage(disk.path, read_only=disk.read_only, direct=disk.direct, checked=disk.format is None)
    from vmm.devices.block.nbd_image import NbdImage

    return NbdImage(disk.path, disk.format, read_only=disk.read_only, direct=disk.direct)


class BlockBackend:
    """One disk.  Its methods belong to xenstore's thread; its queues have threads of their own."""

    kind = "vbd"
    fixed = frozenset[str]()

    def __init__(self, disk: Disk, image: "RawImage | NbdImage", vcpus: int) -> None:
        self.handle = disk.number
        self._disk = disk
        self._image = image
        self._max_queues = min(disk.queues or vcpus, MAX_QUEUES)
        self._queues: list[BlockQueue] = []
        self._totals = Totals()

    def toolstack_keys(self) -> dict[str, str]:
        """As libxl writes them; there are no hotplug scripts."""
        return {
            "params": str(self._disk.path),
            "removable": "0",
            "bootable": "1",
            "dev": self._disk.name,
            "type": "phy",
            "mode": "r" if self._image.read_only else "w",
            "device-type": "disk",
            "discard-enable": "1" if self._disk.discard and not self._image.read_only else "0",
            "specification": "xen",
        }

    def frontend_keys(self) -> dict[str, str]:
        """As libxl writes them."""
        return {"virtual-device": str(self.handle), "device-type": "disk", "trusted": "1"}

    def features(self) -> dict[str, str]:
        """What is known before the front end is there; as Linux's back end names them."""
        image = self._image
        offered = {
            "feature-max-indirect-segments": str(MAX_INDIRECT_SEGMENTS),
            "multi-queue-max-queues": str(self._max_queues),
            "max-ring-page-order": str(MAX_RING_PAGE_ORDER),
            "feature-flush-cache": "1",
        }
        if self._disk.discard and not image.read_only:
            offered |= {
                "discard-granularity": str(image.discard_granularity),
                "discard-alignment": "0",
                "discard-secure": "0",
                "feature-discard": "1",
            }
        return offered | {"feature-barrier": "1", "feature-persistent": "1"}

    def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
        """Serve its rings: what Linux's back end writes at that point.  FrontendError."""
        protocol = frontend.text("protocol") or next(iter(PROTOCOLS))
        if protocol not in PROTOCOLS:
            raise FrontendError(f"protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
        order = frontend.number("ring-page-order", 0)
        queues = frontend.number("multi-queue-num-queues", 1)
        if order > MAX_RING_PAGE_ORDER:
            raise FrontendError(f"ring-page-order {order} is more than {MAX_RING_PAGE_ORDER}")
        if not 1 <= queues <= self._max_queues:
            raise FrontendError(f"multi-queue-num-queues {queues} is not 1 to {self._max_queues}")
        several = queues > 1
        for number in range(queues):
            folder = f"queue-{number}/" if several else ""
            self._open(frontend, folder, order, PROTOCOLS[protocol], number, failed)
        image = self._image
        return {
            "sectors": str(image.size_bytes // SECTOR_BYTES),
            "info": str(VDISK_READONLY if image.read_only else 0),
            "sector-size": str(image.sector_bytes),
            "physical-sector-size": str(image.physical_sector_bytes),
        }

    def _open(
        self, frontend: Frontend, folder: str, order: int, abi: Abi, number: int, failed: Callable[[str], None]
    ) -> None:
        if frontend.text("ring-page-order"):
            refs = [frontend.number(f"{folder}ring-ref{page}") for page in range(1 << order)]
        else:
            refs = [frontend.number(f"{folder}ring-ref")]
        port = frontend.number(f"{folder}event-channel")
        try:
            queue = BlockQueue(
                f"{self._disk.name}-{number}", self._image, frontend.pages, refs, LAYOUTS[abi],
                persistent=frontend.flag("feature-persistent"), failed=failed,
            )  # fmt: skip
        except XenError:
            raise FrontendError(f"{folder}ring-ref does not name pages that were granted to domain 0") from None
        self._queues.append(queue)
        queue.start(frontend.bind(port, queue.bell))

    def disconnect(self, done: Callable[[], None]) -> None:
        """Let every queue finish what it has taken."""
        queues, self._queues = self._queues, []

        def stopped() -> None:
            self._totals.end(queues)
            done()

        stop_all(queues, stopped)

    def counters(self) -> dict[str, int]:
        """Requests and bytes."""
        return self._totals.add_up(list(self._queues))

    def release(self) -> None:
        """Close the file."""
        self._image.close()
