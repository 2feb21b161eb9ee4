"""A virtual machine's descriptor: memory slots, interrupt routing, and the VM-wide switches."""

import errno
import os
from collections.abc import Iterable
from enum import IntFlag
from typing import Any, NamedTuple

from vmm.kvm._native import ffi, lib
from vmm.kvm.errors import KvmError, ioctl
from vmm.kvm.vcpu import VcpuFd

_EVTCHNSTAT_INTERDOMAIN, _EVTCHNSTAT_IPI = 2, 5  # event_channel.h
MSI_ADDRESS = 0xFEE0_0000
_RUNSTATE_UPDATE_FLAG = 5  # of KVM_XEN_ATTR_TYPE_*: Linux 6.3; older headers do not name it


class SlotFlag(IntFlag):
    """Flags of a memory slot."""

    NONE = 0
    LOG_DIRTY = lib.KVM_MEM_LOG_DIRTY_PAGES
    READ_ONLY = lib.KVM_MEM_READONLY


class MsiRoute(NamedTuple):
    """Where a GSI leads: a message, as PCI devices and IOAPICs send it to LAPICs (64-bit address, 32-bit data)."""

    address: int
    data: int

    @classmethod
    def to_lapic(cls, apic_id: int, vector: int) -> "MsiRoute":
        """The message that raises a vector, edge-triggered, at the LAPIC with this id."""
        return cls(MSI_ADDRESS | (apic_id & 0xFF) << 12 | (apic_id & ~0xFF) << 32, vector)


class VmFd:
    """One machine.  Its methods may be called from any thread; KVM serialises them."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        self.fd = fd
        self._vcpu_mmap_size = vcpu_mmap_size

    def capability(self, number: int) -> int:
        """KVM_CHECK_EXTENSION on the machine: 0 where it has not got it."""
        return ioctl(self.fd, "KVM_CHECK_EXTENSION", lib.KVM_CHECK_EXTENSION, number)

    def can_step_without_interrupts(self) -> bool:
        """Whether single steps can hold interrupts back (Linux 5.15)."""
        return bool(self.capability(lib.KVM_CAP_SET_GUEST_DEBUG2) & lib.KVM_GUESTDBG_BLOCKIRQ)

    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """KVM_CREATE_VCPU: `vcpu_id` is the LAPIC id that the guest sees."""
        return VcpuFd(ioctl(self.fd, "KVM_CREATE_VCPU", lib.KVM_CREATE_VCPU, vcpu_id), vcpu_id, self._vcpu_mmap_size)

    def set_memory(self, slot: int, gpa: int, size_bytes: int, address: int, flags: SlotFlag = SlotFlag.NONE) -> None:
        """KVM_SET_USER_MEMORY_REGION: show host memory at `gpa`; a size of 0 takes the slot away."""
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot, region.flags, region.guest_phys_addr = slot, flags, gpa
        region.memory_size, region.userspace_addr = size_bytes, address
        ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", lib.KVM_SET_USER_MEMORY_REGION, region)

    def dirty_pages(self, slot: int, size_bytes: int) -> list[int]:
        """KVM_GET_DIRTY_LOG: page numbers within the slot written since the last call (slot has LOG_DIRTY)."""
        pages = size_bytes // 4096
        bitmap = ffi.new("uint64_t[]", (pages + 63) // 64)
        log = ffi.new("struct kvm_dirty_log *")
        log.slot, log.dirty_bitmap = slot, bitmap
        ioctl(self.fd, "KVM_GET_DIRTY_LOG", lib.KVM_GET_DIRTY_LOG, log)
        return [page for page in range(pages) if bitmap[page // 64] >> (page % 64) & 1]

    def enable(self, capability: int, name: str, *arguments: int) -> None:
        """KVM_ENABLE_CAP on the machine; `name` is the capability's, for the error."""
        request = ffi.new("struct kvm_enable_cap *")
        request.cap = capability
        for index, value in enumerate(arguments):
            request.args[index] = value
        ioctl(self.fd, f"KVM_ENABLE_CAP({name})", lib.KVM_ENABLE_CAP, request)

    def split_irqchip(self, gsi_count: int) -> None:
        """LAPICs in the kernel, nothing else; `gsi_count` GSIs are kept for user space's IOAPIC."""
        self.enable(lib.KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", gsi_count)

    def set_tss_area(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR and KVM_SET_TSS_ADDR: four pages that KVM on Intel keeps for itself."""
        page = ffi.new("uint64_t *", gpa)
        ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", lib.KVM_SET_IDENTITY_MAP_ADDR, page)
        ioctl(self.fd, "KVM_SET_TSS_ADDR", lib.KVM_SET_TSS_ADDR, gpa + 4096)

    def set_msi_routes(self, routes: dict[int, MsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING: replace all routes by these, GSI → message."""
        table = ffi.new("struct kvm_irq_routing *", {"entries": len(routes)})
        table.nr = len(routes)
        for entry, (gsi, route) in zip(table.entries[0 : len(routes)], routes.items(), strict=True):
            entry.gsi, entry.type = gsi, lib.KVM_IRQ_ROUTING_MSI
            entry.u.msi.address_lo = route.address & 0xFFFF_FFFF
            entry.u.msi.address_hi = route.address >> 32
            entry.u.msi.data = route.data
        ioctl(self.fd, "KVM_SET_GSI_ROUTING", lib.KVM_SET_GSI_ROUTING, table)

    def raise_gsi(self, gsi: int) -> None:
        """KVM_IRQ_LINE: send the message that a GSI leads to, once."""
        request = ffi.new("struct kvm_irq_level *")
        request.irq, request.level = gsi, 1
        ioctl(self.fd, "KVM_IRQ_LINE", lib.KVM_IRQ_LINE, request)

    def irqfd(self, eventfd: int, gsi: int, *, assign: bool = True) -> None:
        """KVM_IRQFD: every write to `eventfd` raises `gsi`."""
        request = ffi.new("struct kvm_irqfd *")
        request.fd, request.gsi, request.flags = eventfd, gsi, 0 if assign else lib.KVM_IRQFD_FLAG_DEASSIGN
        ioctl(self.fd, "KVM_IRQFD", lib.KVM_IRQFD, request)

    def ioeventfd(
        self,
        eventfd: int,
        address: int,
        size_bytes: int,
        *,
        port: bool = False,
        match: int | None = None,
        assign: bool = True,
    ) -> None:
        """KVM_IOEVENTFD: guest writes of `size_bytes` to the address (or I/O port) signal `eventfd` and do not exit."""
        request = ffi.new("struct kvm_ioeventfd *")
        request.fd, request.addr, request.len = eventfd, address, size_bytes
        request.flags = (lib.KVM_IOEVENTFD_FLAG_PIO if port else 0) | (0 if assign else lib.KVM_IOEVENTFD_FLAG_DEASSIGN)
        if match is not None:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
            request.datamatch = match
        ioctl(self.fd, "KVM_IOEVENTFD", lib.KVM_IOEVENTFD, request)

    def exit_on_msrs(self, *, read: Iterable[int], written: Iterable[int]) -> None:
        """Let the guest's reads and writes of these MSRs exit to user space (KVM_X86_SET_MSR_FILTER).

        A filter, since KVM itself claims some of these numbers for Hyper-V and would not call them unknown.
        """
        self.enable(lib.KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR", lib.KVM_MSR_EXIT_REASON_FILTER)
        table = ffi.new("struct kvm_msr_filter *")
        table.flags = lib.KVM_MSR_FILTER_DEFAULT_ALLOW
        keep = []
        wanted = [(lib.KVM_MSR_FILTER_READ, stretch) for stretch in _stretches(read)]
        wanted += [(lib.KVM_MSR_FILTER_WRITE, stretch) for stretch in _stretches(written)]
        for row, (access, stretch) in zip(table.ranges, wanted, strict=False):
            denied = ffi.new("uint8_t[]", -(-len(stretch) // 8))
            row.flags, row.nmsrs, row.base, row.bitmap = access, len(stretch), stretch[0], denied
            keep.append(denied)
        ioctl(self.fd, "KVM_X86_SET_MSR_FILTER", lib.KVM_X86_SET_MSR_FILTER, table)

    def clock_ns(self) -> int:
        """KVM_GET_CLOCK: the guest's kvmclock, nanoseconds."""
        clock = ffi.new("struct kvm_clock_data *")
        ioctl(self.fd, "KVM_GET_CLOCK", lib.KVM_GET_CLOCK, clock)
        return int(clock.clock)

    def xen_config(self, msr: int) -> None:
        """KVM_XEN_HVM_CONFIG: KVM fills the hypercall page on a write to `msr` and exits for every hypercall."""
        config = ffi.new("struct kvm_xen_hvm_config *")
        config.flags, config.msr = lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, msr
        ioctl(self.fd, "KVM_XEN_HVM_CONFIG", lib.KVM_XEN_HVM_CONFIG, config)

    def _xen_set(self, name: str, attribute: Any) -> None:
        ioctl(self.fd, f"KVM_XEN_HVM_SET_ATTR({name})", lib.KVM_XEN_HVM_SET_ATTR, attribute)

    def xen_set_long_mode(self, enabled: bool) -> None:
        """KVM_XEN_ATTR_TYPE_LONG_MODE: whether the shared structures have the 64-bit layout."""
        attribute = ffi.new("struct kvm_xen_hvm_attr *")
        attribute.type, attribute.u.long_mode = lib.KVM_XEN_ATTR_TYPE_LONG_MODE, enabled
        self._xen_set("LONG_MODE", attribute)

    def xen_set_shared_info(self, gfn: int) -> None:
        """KVM_XEN_ATTR_TYPE_SHARED_INFO: where the page with the 2-level bits is."""
        attribute = ffi.new("struct kvm_xen_hvm_attr *")
        attribute.type, attribute.u.shared_info.gfn = lib.KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn
        self._xen_set("SHARED_INFO", attribute)

    def xen_set_callback_vector(self, vector: int) -> None:
        """KVM_XEN_ATTR_TYPE_UPCALL_VECTOR: injected, past the LAPIC, while a vCPU's upcall is pending; 0 for none."""
        attribute = ffi.new("struct kvm_xen_hvm_attr *")
        attribute.type, attribute.u.vector = lib.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector
        self._xen_set("UPCALL_VECTOR", attribute)

    def xen_bind_ipi(self, port: int, vcpu_id: int) -> None:
        """KVM_XEN_ATTR_TYPE_EVTCHN: a port whose events go to the vCPU with this KVM id."""
        attribute, binding = self._evtchn(port, 0)
        binding.type = _EVTCHNSTAT_IPI
        target = binding.deliver.port
        target.port, target.vcpu, target.priority = port, vcpu_id, lib.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        self._xen_set("EVTCHN", attribute)

    def xen_bind_eventfd(self, port: int, fd: int) -> None:
        """KVM_XEN_ATTR_TYPE_EVTCHN: a port whose events signal an eventfd, whichever ABI the guest uses."""
        attribute, binding = self._evtchn(port, 0)
        binding.type = _EVTCHNSTAT_INTERDOMAIN
        binding.deliver.eventfd.fd = fd
        self._xen_set("EVTCHN", attribute)

    def xen_forget_port(self, port: int) -> None:
        """KVM_XEN_EVTCHN_DEASSIGN; a port that was not bound is none the worse."""
        attribute, _ = self._evtchn(port, lib.KVM_XEN_EVTCHN_DEASSIGN)
        try:
            self._xen_set("EVTCHN", attribute)
        except KvmError as error:
            if error.code != errno.ENOENT:
                raise

    def xen_forget_ports(self) -> None:
        """KVM_XEN_EVTCHN_RESET: all of them."""
        attribute, _ = self._evtchn(0, lib.KVM_XEN_EVTCHN_RESET)
        self._xen_set("EVTCHN", attribute)

    def _evtchn(self, port: int, flags: int) -> tuple[Any, Any]:
        attribute = ffi.new("struct kvm_xen_hvm_attr *")
        attribute.type = lib.KVM_XEN_ATTR_TYPE_EVTCHN
        attribute.u.evtchn.send_port, attribute.u.evtchn.flags = port, flags
        return attribute, attribute.u.evtchn

    def xen_set_runstate_flag(self, enabled: bool) -> None:
        """KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG: whether run states carry a flag while they are being written."""
        attribute = ffi.new("struct kvm_xen_hvm_attr *")
        attribute.type, attribute.u.long_mode = _RUNSTATE_UPDATE_FLAG, enabled
        self._xen_set("RUNSTATE_UPDATE_FLAG", attribute)

    def close(self) -> None:
        """The machine ends when its vCPUs are closed too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _stretches(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers, those that follow each other together: a filter has no more than 16 ranges."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found
