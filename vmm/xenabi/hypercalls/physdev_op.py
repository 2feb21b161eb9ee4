"""physdev_op: interrupts and PCI devices of the initial domain.  xen/include/public/physdev.h

A PVH dom0 has an IOAPIC and programs MSIs itself: pirqs are not for it, and Xen 4.17 refuses them with ENOSYS.
"""

import errno

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls.registry import suboperation
from vmm.xenabi.state import Call
from vmm.xenabi.toolstack_structs import PhysdevPciDevice, PhysdevPciDeviceAdd, PhysdevPciMmcfgReserved
from vmm.xenabi.values import XenError

OP = Hypercall.physdev_op


def _without_pirqs(*commands: tuple[int, str]) -> None:
    for number, name in commands:

        def handler(call: Call) -> None:
            """Refused as on Xen, to a domain that has no pirqs."""
            raise XenError(errno.ENOSYS)

        suboperation(OP, number, name)(handler)


_without_pirqs(
    (5, "irq_status_query"), (6, "set_iopl"), (7, "set_iobitmap"), (8, "apic_read"), (9, "apic_write"),
    (10, "alloc_irq_vector"), (12, "eoi"), (13, "map_pirq"), (14, "unmap_pirq"), (15, "manage_pci_add"),
    (16, "manage_pci_remove"), (17, "pirq_eoi_gmfn_v1"), (19, "restore_msi"), (20, "manage_pci_add_ext"),
    (21, "setup_gsi"), (23, "get_free_pirq"), (27, "restore_msi_ext"), (28, "pirq_eoi_gmfn_v2"), (29, "dbgp_op"),
    (30, "prepare_msix"), (31, "release_msix"),
)  # fmt: skip


@suboperation(OP, 24, "pci_mmcfg_reserved", arg=PhysdevPciMmcfgReserved)
def pci_mmcfg_reserved(call: Call, op: PhysdevPciMmcfgReserved) -> None:
    """The kernel says where it has found memory-mapped configuration space."""
    if op.segment or op.start_bus > op.end_bus:
        raise XenError(errno.EINVAL)


@suboperation(OP, 25, "pci_device_add", arg=PhysdevPciDeviceAdd)
def pci_device_add(call: Call, op: PhysdevPciDeviceAdd) -> None:
    """The kernel says what it has found on its bus."""
    _note(call, "add", op)


@suboperation(OP, 26, "pci_device_remove", arg=PhysdevPciDevice)
def pci_device_remove(call: Call, op: PhysdevPciDevice) -> None:
    """The kernel says that a device is gone."""
    _note(call, "remove", op)


def _note(call: Call, what: str, op: PhysdevPciDeviceAdd | PhysdevPciDevice) -> None:
    domain = call.domain
    if not domain.has_pci_device(op.seg, op.bus, op.devfn):
        raise XenError(errno.ENODEV)
    place = f"{op.seg:04x}:{op.bus:02x}:{op.devfn >> 3:02x}.{op.devfn & 7}"
    domain.hypervisor.log.note(f"PCI {what} device {place}")
