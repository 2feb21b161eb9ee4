"""A machine of a few bytes of code, for tests of KVM itself."""

import struct
from collections.abc import Iterator

import pytest

from vmm.kvm import HostMemory, MpState, SlotFlag, System, VcpuFd, VmFd, allow_kicks

CODE = 0x1000
RAM_BYTES = 1 << 20
HANDLER, GDT, IDT = 0x3000, 0x4000, 0x5000


class Machine:
    """One machine with a megabyte of RAM and vCPUs in flat 32-bit mode."""

    def __init__(self, system: System) -> None:
        allow_kicks()
        self.cpuid = system.supported_cpuid()
        self.vm: VmFd = system.create_vm()
        self.vm.set_tss_area(0xFEFF0000)
        self.vm.split_irqchip(0)
        self.ram = HostMemory(RAM_BYTES)
        self.vm.set_memory(0, 0, RAM_BYTES, self.ram.address, SlotFlag.LOG_DIRTY)
        self.vcpus: list[VcpuFd] = []

    def vcpu(self, code: bytes) -> VcpuFd:
        vcpu = self.vm.create_vcpu(len(self.vcpus))
        self.vcpus.append(vcpu)
        vcpu.set_cpuid(self.cpuid)
        vcpu.claim()
        self.ram.view[CODE : CODE + len(code)] = code
        sregs = vcpu.get_sregs()
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
            segment.base, segment.limit, segment.selector, segment.type = 0, 0xFFFFFFFF, 8, 3
            segment.s = segment.present = segment.db = segment.g = 1
            segment.dpl = segment.l = segment.unusable = 0
        sregs.cs.type = 11
        sregs.cr0 |= 1
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, 0x9000, 2
        vcpu.set_regs(regs)
        vcpu.set_mp_state(MpState.RUNNABLE)
        return vcpu

    def with_gates(self, vcpu: VcpuFd, handler: bytes, *vectors: int) -> None:
        """All these vectors lead to a handler; selector 8 is flat code, and 16 flat data."""
        self.ram.view[HANDLER : HANDLER + len(handler)] = handler
        descriptors = bytes.fromhex("0000000000000000 ffff0000009bcf00 ffff00000093cf00")
        self.ram.view[GDT : GDT + len(descriptors)] = descriptors
        for vector in vectors:
            self.ram.view[IDT + 8 * vector : IDT + 8 * vector + 8] = struct.pack("<HHHH", HANDLER, 8, 0x8E00, 0)
        sregs = vcpu.get_sregs()
        sregs.idt.base, sregs.idt.limit = IDT, 0x7FF
        sregs.gdt.base, sregs.gdt.limit = GDT, len(descriptors) - 1
        vcpu.set_sregs(sregs)

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.ram.close()


@pytest.fixture
def machine(system: System) -> Iterator[Machine]:
    made = Machine(system)
    yield made
    made.close()
