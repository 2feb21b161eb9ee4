"""What kvm_intel and kvm_amd do by different means, and pyvmm takes to be one: exits, windows, steps, refused entries."""

from pathlib import Path

import pytest

from tests.micro.conftest import CODE, Machine
from vmm.host.cpuinfo import cpu_flags
from vmm.kvm import Exit, GuestDebug, VcpuFd
from vmm.machine.exits import refused_entry

OUT, OUT_OF_HANDLER = b"\xe7\x42", b"\xe7\x43"  # out %eax, $PORT
PORT, HANDLERS_PORT = 0x42, 0x43
NMI, VECTOR = 2, 0x40
DATA_SELECTOR = 0x10
NOWHERE = 0x8000_0000  # no RAM, and no device of KVM's
STI, CLI, NOP, IRET, INT3, UD2 = b"\xfb", b"\xfa", b"\x90", b"\xcf", b"\xcc", b"\x0f\x0b"

hardware = pytest.mark.skipif(
    not {"vmx", "svm"} & cpu_flags(), reason="needs VT-x or AMD-V: this is about what the two do by themselves"
)


def next_port(vcpu: VcpuFd) -> int:
    assert vcpu.enter() == Exit.IO
    return int(vcpu.run.io.port)


@hardware
def test_an_nmi_in_an_nmis_handler_waits_for_its_iret(machine: Machine) -> None:
    vcpu = machine.vcpu(OUT + NOP + OUT)
    machine.with_gates(vcpu, OUT_OF_HANDLER + NOP + OUT_OF_HANDLER + IRET, NMI, VECTOR)
    assert next_port(vcpu) == PORT
    vcpu.nmi()
    assert next_port(vcpu) == HANDLERS_PORT
    stack = vcpu.get_regs().rsp
    vcpu.nmi()
    assert [next_port(vcpu), vcpu.get_regs().rsp] == [HANDLERS_PORT, stack], "the first goes on"
    assert [next_port(vcpu), vcpu.get_regs().rsp] == [HANDLERS_PORT, stack], "then the second, and on no deeper stack"
    assert next_port(vcpu) == HANDLERS_PORT
    assert next_port(vcpu) == PORT


@hardware
def test_an_interrupt_waits_for_its_window_and_not_in_stis_shadow(machine: Machine) -> None:
    vcpu = machine.vcpu(OUT + OUT + STI + CLI + OUT + STI + NOP + OUT)
    machine.with_gates(vcpu, OUT_OF_HANDLER + IRET, NMI, VECTOR)
    assert next_port(vcpu) == PORT
    vcpu.open_lint0()
    assert vcpu.interrupt(VECTOR)
    assert next_port(vcpu) == PORT, "interrupts are off"
    assert next_port(vcpu) == PORT, "sti lets none in before the next instruction, which is cli"
    assert next_port(vcpu) == HANDLERS_PORT
    assert next_port(vcpu) == PORT


@hardware
def test_steps_stop_behind_each_instruction_that_kvm_emulates_too_but_not_in_mov_sss_shadow(machine: Machine) -> None:
    load_ss, cpuid = b"\x8e\xd0", b"\x0f\xa2"
    vcpu = machine.vcpu(NOP + load_ss + NOP + cpuid + NOP)
    machine.with_gates(vcpu, NOP, NMI, VECTOR)
    regs = vcpu.get_regs()
    regs.rax = DATA_SELECTOR
    vcpu.set_regs(regs)
    vcpu.debug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP, [0] * 8)
    stops = []
    for _ in range(4):
        assert vcpu.enter() == Exit.DEBUG
        stops.append(vcpu.run.debug.arch.pc - CODE)
    assert stops == [1, 1 + 2 + 1, 1 + 2 + 1 + 2, 1 + 2 + 1 + 2 + 1]


@hardware
@pytest.mark.skipif(
    "QEMU TCG" in Path("/proc/cpuinfo").read_text(), reason="QEMU's TCG hands INT3 to the guest though #BP is intercepted"
)
def test_a_breakpoint_that_a_debugger_has_set_is_the_debuggers(machine: Machine) -> None:
    vcpu = machine.vcpu(NOP + INT3 + OUT)
    vcpu.debug(GuestDebug.ENABLE | GuestDebug.USE_SW_BP, [0] * 8)
    assert vcpu.enter() == Exit.DEBUG
    assert (vcpu.run.debug.arch.exception, vcpu.run.debug.arch.pc) == (3, CODE + 1)


@hardware
def test_a_hardware_breakpoint_stops_before_its_instruction(machine: Machine) -> None:
    vcpu = machine.vcpu(NOP + NOP + OUT)
    vcpu.debug(GuestDebug.ENABLE | GuestDebug.USE_HW_BP, [CODE + 1, 0, 0, 0, 0, 0, 0, 0x402])
    assert vcpu.enter() == Exit.DEBUG
    assert (vcpu.run.debug.arch.exception, vcpu.run.debug.arch.pc) == (1, CODE + 1)


def test_memory_that_nobody_has_is_mmio_both_ways(machine: Machine) -> None:
    write = b"\xb8\x78\x56\x34\x12\xa3" + NOWHERE.to_bytes(4, "little")  # mov $0x12345678, %eax; mov %eax, NOWHERE
    read = b"\xa1" + (NOWHERE + 8).to_bytes(4, "little")
    vcpu = machine.vcpu(write + read + OUT)
    assert vcpu.enter() == Exit.MMIO
    found = vcpu.run.mmio
    assert (found.phys_addr, found.is_write, found.len, bytes(found.data[0:4])) == (NOWHERE, 1, 4, b"\x78\x56\x34\x12")
    assert vcpu.enter() == Exit.MMIO
    assert (vcpu.run.mmio.phys_addr, vcpu.run.mmio.is_write) == (NOWHERE + 8, 0)
    vcpu.run.mmio.data[0:4] = b"\xef\xbe\xad\xde"
    assert vcpu.enter() == Exit.IO
    assert vcpu.regs.rax == 0xDEADBEEF


@hardware
def test_a_fault_without_a_table_is_a_shutdown(machine: Machine) -> None:
    vcpu = machine.vcpu(NOP + UD2)
    sregs = vcpu.get_sregs()
    sregs.idt.limit = 0
    vcpu.set_sregs(sregs)
    assert vcpu.enter() == Exit.SHUTDOWN
    if "vmx" in cpu_flags():  # AMD-V says that its state is undefined then, and KVM resets it
        assert vcpu.get_regs().rip == CODE + 1


@pytest.mark.skipif("vmx" not in cpu_flags(), reason="needs VT-x: AMD-V enters whatever state KVM lets a monitor set")
def test_a_state_that_vt_x_refuses_is_explained(machine: Machine) -> None:
    vcpu = machine.vcpu(OUT)
    sregs = vcpu.get_sregs()
    sregs.tr.type = 1  # a task that is not busy
    vcpu.set_sregs(sregs)
    assert vcpu.enter() == Exit.FAIL_ENTRY
    reason = vcpu.run.fail_entry.hardware_entry_failure_reason
    assert refused_entry(reason) == ("the CPU refused to enter the guest: invalid guest state (hardware reason 0x80000021)")
