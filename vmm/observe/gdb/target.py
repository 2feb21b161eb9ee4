"""A domain under a debugger: its vCPUs stopped and run, its memory, its breakpoints.

Owned by the debugger's thread, but for `_on_debug_exit`, which runs in a vCPU's own and hands over through `stops`.
"""

import contextlib
import os
from collections import deque
from typing import NamedTuple

from vmm.kvm import Exit, GuestDebug
from vmm.machine.domain import Domain
from vmm.machine.hooks import Hooks, Proceed
from vmm.machine.lifecycle import Hold
from vmm.machine.memory.paging import PageFault, pieces
from vmm.machine.memory.regions import MemoryFault
from vmm.machine.vcpu import Vcpu
from vmm.xenabi.values import VcpuId

INT3 = b"\xcc"
HARDWARE_BREAKPOINTS = 4
_BP, _DB = 3, 1
_DR6_STEP = 1 << 14
_DR7_LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
_EXECUTE, _WRITE, _ACCESS = 0, 1, 3
KINDS = {1: _EXECUTE, 2: _WRITE, 3: _ACCESS, 4: _ACCESS}
"""GDB's Z types with debug registers, and DR7's kinds: x86 has no watchpoint that only reads trigger."""


class Hardware(NamedTuple):
    """A breakpoint or watchpoint in a debug register."""

    type: int
    address: int
    length: int


class Stop(NamedTuple):
    """Why a vCPU has stopped: `step`, `swbreak`, `hwbreak`, or `watch` with an address."""

    vcpu: int
    why: str
    address: int = 0


class CannotReach(Exception):
    """An address where nothing is mapped."""


class Target:
    """Stops, runs, reads and writes."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable when there is something in `stops`."""
        self.stops: deque[Stop] = deque()
        self._int3: dict[int, bytes] = {}
        self._hardware: list[Hardware] = []
        self._soft_hardware: list[Hardware] = []
        self._steps: set[int] = set()
        quiet = domain.vm.can_step_without_interrupts()
        self._step_flags = GuestDebug.BLOCKIRQ if quiet else GuestDebug(0)
        self._hooks = Hooks(exit=self._on_exit)
        domain.hooks.attach(self._hooks)

    @property
    def vcpus(self) -> list[Vcpu]:
        """The domain's vCPUs, GDB's threads."""
        return self.domain.vcpus

    # ------------------------------------------------------------------------------- stop and run

    def _on_exit(self, vcpu_id: VcpuId, reason: int, proceed: Proceed) -> None:
        vcpu = self.vcpus[vcpu_id]
        if reason == Exit.DEBUG:
            self._on_debug_exit(vcpu)
        elif reason == Exit.INTERNAL_ERROR and vcpu.kvm.regs.rip in self._int3:
            # A KVM that emulates kernel code for want of VT-x and AMD-V cannot emulate int3.
            self._stop(vcpu, Stop(vcpu.id, "swbreak"))
        else:
            proceed()

    def _stop(self, vcpu: Vcpu, stop: Stop) -> None:
        vcpu.hold(Hold.DEBUGGER)
        self.stops.append(stop)
        os.eventfd_write(self.wake, 1)

    def _on_debug_exit(self, vcpu: Vcpu) -> None:
        debug = vcpu.kvm.run.debug.arch
        if debug.exception == _BP and debug.pc not in self._int3:
            vcpu.kvm.debug(self._control(vcpu.id) | GuestDebug.INJECT_BP, self._registers())  # the guest's own
            return
        if debug.exception == _BP:
            stop = Stop(vcpu.id, "swbreak")
        elif hit := next((point for n, point in enumerate(self._points()) if debug.dr6 >> n & 1), None):
            why = "watch" if hit.type != 1 else "hwbreak" if hit in self._hardware else "swbreak"
            stop = Stop(vcpu.id, why, hit.address)
        elif debug.dr6 & _DR6_STEP and vcpu.id in self._steps:
            stop = Stop(vcpu.id, "step")
        else:
            vcpu.kvm.debug(self._control(vcpu.id) | GuestDebug.INJECT_DB, self._registers())
            return
        self._stop(vcpu, stop)

    def stop(self) -> None:
        """Stop all vCPUs."""
        for vcpu in self.vcpus:
            vcpu.pause(Hold.DEBUGGER)

    def run(self, steps: set[int], runs: set[int]) -> None:
        """Let some vCPUs execute one instruction each, others go on; the rest stay where they are."""
        self.stops.clear()
        self._steps = steps
        for vcpu in self.vcpus:
            self._apply(vcpu)
        for vcpu in self.vcpus:
            if vcpu.id in steps or vcpu.id in runs:
                vcpu.resume(Hold.DEBUGGER)

    def _control(self, vcpu: int) -> GuestDebug:
        control = GuestDebug(0)
        if self._int3:
            control |= GuestDebug.USE_SW_BP
        if self._points():
            control |= GuestDebug.USE_HW_BP
        if vcpu in self._steps:
            control |= GuestDebug.SINGLESTEP | self._step_flags
        return control | GuestDebug.ENABLE if control else control

    def _registers(self) -> list[int]:
        found, dr7 = [0] * 8, 0
        for number, point in enumerate(self._points()):
            found[number] = point.address
            dr7 |= 2 << 2 * number
            dr7 |= (KINDS[point.type] | _DR7_LENGTHS[point.length] << 2) << 16 + 4 * number
        found[7] = dr7 | 1 << 10 | (1 << 9 if dr7 else 0)
        return found

    def _apply(self, vcpu: Vcpu) -> None:
        control, registers = self._control(vcpu.id), self._registers()
        vcpu.ask(lambda: vcpu.kvm.debug(control, registers))

    def release(self) -> None:
        """Take all breakpoints out and let the guest go on by itself."""
        self.stop()
        for address in list(self._int3):
            self.remove_software(address)
        self._hardware.clear()
        self._soft_hardware.clear()
        self.run(set(), {vcpu.id for vcpu in self.vcpus})
        self.domain.hooks.detach(self._hooks)

    def close(self) -> None:
        """Let go of the descriptor; the guest has ended or been released."""
        self.domain.hooks.detach(self._hooks)
        os.close(self.wake)

    # ------------------------------------------------------------------------------------- memory

    def read(self, vcpu: int, address: int, size: int) -> bytes:
        """Virtual memory as a stopped vCPU sees it: up to the first page that is not mapped.  CannotReach."""
        found = b""
        try:
            for gpa, length in self._pieces(vcpu, address, size):
                found += self.domain.memory.read(gpa, length)
        except (PageFault, MemoryFault):
            if not found:
                raise CannotReach from None
        return found

    def write(self, vcpu: int, address: int, data: bytes) -> None:
        """To virtual memory, also where the guest may only read.  CannotReach."""
        try:
            views = [self.domain.memory.view(gpa, length) for gpa, length in self._pieces(vcpu, address, len(data))]
        except (PageFault, MemoryFault):
            raise CannotReach from None
        if sum(map(len, views)) < len(data):
            raise CannotReach
        for view in views:
            view[:], data = data[: len(view)], data[len(view) :]

    def _pieces(self, vcpu: int, address: int, size: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        try:
            for piece in pieces(self.domain.memory, self.vcpus[vcpu].kvm.sregs, address, size, write=False):
                found.append(piece)
        except (PageFault, MemoryFault):
            if not found:
                raise
        return found

    # -------------------------------------------------------------------------------- breakpoints

    def _points(self) -> list[Hardware]:
        return self._hardware + self._soft_hardware

    def insert_software(self, vcpu: int, address: int) -> None:
        """A breakpoint that may take int3 in place of an instruction's first byte.  CannotReach.

        While a debug register is free it takes that: it works before the guest has mapped its code, and on a nested host
        whose emulated CPU does not tell of int3 (QEMU's TCG).
        """
        point = Hardware(1, address, 1)
        if address in self._int3 or point in self._soft_hardware:
            return
        if len(self._points()) < HARDWARE_BREAKPOINTS:
            self._soft_hardware.append(point)
        else:
            self._write_int3(vcpu, address)

    def _write_int3(self, vcpu: int, address: int) -> None:
        before = self.read(vcpu, address, 1)
        self.write(vcpu, address, INT3)
        self._int3[address] = before

    def remove_software(self, address: int, vcpu: int = 0) -> None:
        """The instruction is whole again, unless the guest has changed it meanwhile."""
        point = Hardware(1, address, 1)
        if point in self._soft_hardware:
            self._soft_hardware.remove(point)
        before = self._int3.pop(address, None)
        if before is not None:
            with contextlib.suppress(CannotReach):  # the guest has unmapped it, and with it the breakpoint
                if self.read(vcpu, address, 1) == INT3:
                    self.write(vcpu, address, before)

    def insert_hardware(self, vcpu: int, point: Hardware) -> bool:
        """A debug register; False where all are taken.  CannotReach where the breakpoint that has to make room cannot."""
        if point in self._hardware:
            return True
        if len(self._hardware) == HARDWARE_BREAKPOINTS:
            return False
        if len(self._points()) == HARDWARE_BREAKPOINTS:
            self._write_int3(vcpu, self._soft_hardware[-1].address)
            self._soft_hardware.pop()
        self._hardware.append(point)
        return True

    def remove_hardware(self, point: Hardware) -> None:
        """Give its register back."""
        if point in self._hardware:
            self._hardware.remove(point)
