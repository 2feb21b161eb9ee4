"""What a vCPU's thread does when KVM has left the guest: ports, addresses, MSRs, hypercalls, and what ends a domain.

Owned by the vCPU's thread.
"""

import errno
import struct
from collections.abc import Callable
from typing import Any, Protocol

from vmm.kvm import CS_L, SS_DPL, Exit
from vmm.machine.memory.regions import MemoryFault
from vmm.machine.parts import VcpuHost, VcpuThread
from vmm.xenabi.constants import HYPERCALL_MSR, PAGE_BYTES
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.state import Call
from vmm.xenabi.transport import INSTRUCTION_BYTES, PORT, hypercall_page
from vmm.xenabi.values import Restart, Wait
from vmm.xenabi.vcpu_context import CR0_PE

_VMCALL_BYTES = 3
_ABI_64 = Abi.X86_64  # a member of an enumeration is looked up by a function each time
_REGISTERS = struct.Struct("<11Q")
"""The first of struct kvm_regs: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, R9, R10."""
_HYPERCALL_PORT, _BUT_SIZE = 1 | PORT << 16, 0xFFFF_00FF
"""run.io's direction and port, for an `out` to PORT."""
_EPERM = (1 << 64) - errno.EPERM
_ENOSYS = (1 << 64) - errno.ENOSYS
_RESET_RIP, _RESET_CS = 0xFFF0, 0xF000
_KVM_ERRORS = {
    1: "KVM could not emulate an instruction",
    2: "too many exceptions at once",
    3: "an exit while delivering an event",
}


_HOSTS_FAULT = "which is the fault of this host's KVM, or of what it runs on"
_REFUSED = {
    # VM-instruction errors (Intel SDM volume 3, 31.4): VMLAUNCH or VMRESUME failed.
    4: f"VMLAUNCH with a VMCS that is not clear, {_HOSTS_FAULT}",
    5: f"VMRESUME with a VMCS that is not launched, {_HOSTS_FAULT}",
    7: f"invalid control fields, {_HOSTS_FAULT}",
    8: f"invalid host-state fields, {_HOSTS_FAULT}",
    26: f"events blocked by MOV SS, {_HOSTS_FAULT}",
    # Exit reasons with bit 31 (appendix C): the entry failed after that.
    0x8000_0021: "invalid guest state",
    0x8000_0022: f"an MSR could not be loaded, {_HOSTS_FAULT}",
    0x8000_0029: "a machine check, which is the fault of this host's hardware",
    # AMD-V: VMEXIT_INVALID (AMD64 APM volume 2, appendix C).
    0xFFFF_FFFF_FFFF_FFFF: "invalid guest state, or control fields",
    0xFFFF_FFFF: "invalid guest state, or control fields",
}


def refused_entry(reason: int) -> str:
    """What KVM_EXIT_FAIL_ENTRY means: a VM-instruction error or exit reason of VT-x, or an exit code of AMD-V."""
    meaning = _REFUSED.get(reason)
    explained = f"{meaning} (hardware reason {reason:#x})" if meaning else f"hardware reason {reason:#x}"
    return f"the CPU refused to enter the guest: {explained}"


class WaitingThread(VcpuThread, Protocol):
    """A vCPU whose hypercalls may wait."""

    def wait(self, wait: Wait) -> None:
        """Until the condition holds, or the deadline has come, or somebody wants the vCPU for something else."""
        ...

    def settle(self) -> None:
        """Let KVM complete the instruction that it has left the guest for, and no more."""
        ...


class Exits:
    """The exits of one vCPU.  `handlers` has a function for each."""

    def __init__(self, vcpu: WaitingThread, host: VcpuHost, call: Call) -> None:
        self._vcpu = vcpu
        self._host = host
        self._id = vcpu.id
        self._kvm = vcpu.kvm
        self._call = call
        run = self._kvm.run
        self._port_words, self._words, self._modes = self._kvm.port, self._kvm.words, self._kvm.modes
        self._io, self._mmio, self._msr, self._hcall = run.io, run.mmio, run.msr, run.xen.u.hcall
        self._eoi = run.eoi
        self._cs = self._kvm.sregs.cs
        self.handlers: dict[int, Callable[[], None]] = {
            Exit.IO: self._port,
            Exit.XEN: self._xen,
            Exit.MMIO: self._mmio_access,
            Exit.IOAPIC_EOI: self._end_of_interrupt,
            Exit.X86_RDMSR: self._read_msr,
            Exit.X86_WRMSR: self._write_msr,
            Exit.SHUTDOWN: self._triple_fault,
            Exit.INTERNAL_ERROR: self._internal_error,
            Exit.FAIL_ENTRY: self._fail_entry,
        }

    def close(self) -> None:
        """Let go of the run area; the vCPU's thread has ended."""
        self._io = self._mmio = self._msr = self._hcall = self._cs = None

    def _port(self) -> None:
        if self._port_words[0] & _BUT_SIZE == _HYPERCALL_PORT:
            self._hypercall_by_port()
            return
        io = self._io
        port, size, offset = io.port, io.size, io.data_offset
        data = self._kvm.data(offset, size * io.count)
        for start in range(0, size * io.count, size):
            if io.direction:
                self._host.ports.write(port, size, int.from_bytes(data[start : start + size], "little"))
            else:
                data[start : start + size] = self._host.ports.read(port, size).to_bytes(size, "little")
        data.release()

    def _mmio_access(self) -> None:
        access = self._mmio
        address, size = access.phys_addr, access.len
        if access.is_write:
            self._host.mmio.write(address, size, int.from_bytes(bytes(access.data)[:size], "little"))
        else:
            access.data = self._host.mmio.read(address, size).to_bytes(8, "little")

    def _end_of_interrupt(self) -> None:
        self._host.end_of_interrupt(self._eoi.vector)

    def _read_msr(self) -> None:
        msr = self._msr
        msr.error, msr.data = int(msr.index != HYPERCALL_MSR), 0  # Xen's reads as 0; the others are not there

    def _write_msr(self) -> None:
        msr = self._msr
        if msr.index == HYPERCALL_MSR and not msr.data & (PAGE_BYTES - 1):
            try:
                self._host.memory.write(msr.data, hypercall_page())
            except MemoryFault:
                msr.error = 1
            else:
                self._host.hypercall_page_written()
                msr.error = 0
        else:
            msr.error = 1

    def _triple_fault(self) -> None:
        text = "triple fault"
        if self._kvm.regs.rip == _RESET_RIP and self._cs.selector == _RESET_CS:
            text += " (AMD-V keeps no state after one: the registers are those of the reset that KVM made of it)"
        self._host.crash(text, self._id)

    def _internal_error(self) -> None:
        suberror = self._kvm.run.internal.suberror
        self._host.crash(_KVM_ERRORS.get(suberror, f"KVM internal error {suberror}"), self._id)

    def _fail_entry(self) -> None:
        self._host.crash(refused_entry(self._kvm.run.fail_entry.hardware_entry_failure_reason), self._id)

    # ----------------------------------------------------------------------------------- hypercalls

    def _hypercall_by_port(self) -> None:
        call, words, modes = self._call, self._words, self._modes
        if modes[SS_DPL]:
            self._host.refused_hypercall()
            words[0] = _EPERM
        elif modes[CS_L]:
            rax, _, _, rdx, rsi, rdi, _, _, r8, r9, r10 = _REGISTERS.unpack_from(words)
            call.abi, call.number, call.args = _ABI_64, rax & 0xFFFF_FFFF, (rdi, rsi, rdx, r10, r8, r9)
            result = self._answer(call, INSTRUCTION_BYTES)
            if result is None:
                return
            words[0] = result & 0xFFFF_FFFF_FFFF_FFFF
        elif self._kvm.sregs.cr0 & CR0_PE:
            low = 0xFFFF_FFFF
            rax, rbx, rcx, rdx, rsi, rdi, _, rbp, *_ = _REGISTERS.unpack_from(words)
            call.abi, call.number = Abi.X86_32, rax & low
            call.args = (rbx & low, rcx & low, rdx & low, rsi & low, rdi & low, rbp & low)
            result = self._answer(call, INSTRUCTION_BYTES)
            if result is None:
                return
            words[0] = result & low
        else:
            words[0] = _ENOSYS  # real mode has no hypercalls
        self._kvm.regs_changed()

    def _xen(self) -> None:
        hcall, call = self._hcall, self._call
        if hcall.cpl:
            self._host.refused_hypercall()
            hcall.result = _EPERM
            return
        call.abi = Abi.X86_64 if hcall.longmode else Abi.X86_32
        call.number = hcall.input & 0xFFFF_FFFF
        call.args = tuple(hcall.params)
        result = self._answer(call, _VMCALL_BYTES)
        if result is not None:
            hcall.result = result & (0xFFFF_FFFF_FFFF_FFFF if hcall.longmode else 0xFFFF_FFFF)

    def _answer(self, call: Call, instruction_bytes: int) -> int | None:
        """What the guest gets; None where it is to issue the hypercall again."""
        outcome: Any = self._host.hypercall(call)
        if type(outcome) is int:
            return outcome
        if type(outcome) is Wait:
            self._vcpu.wait(outcome)
            outcome = outcome.finish()
        if type(outcome) is Restart:
            self._restart(outcome.arguments, instruction_bytes)
            return None
        return int(outcome)

    def _restart(self, arguments: tuple[int, ...], instruction_bytes: int) -> None:
        """Have the guest issue its hypercall again, with new leading arguments, after it has taken its interrupts.

        KVM completes the instruction at the next entry, so enter once without running and step back.
        """
        kvm, call = self._kvm, self._call
        self._vcpu.settle()
        regs = kvm.regs
        regs.rip -= instruction_bytes
        regs.rax = call.number
        names = (
            ("rdi", "rsi", "rdx", "r10", "r8", "r9")
            if call.abi is Abi.X86_64
            else ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
        )
        for name, value in zip(names, arguments, strict=False):
            setattr(regs, name, value)
        kvm.regs_changed()
