"""/dev/kvm through pyvmm's own wrappers, with a few bytes of code for guests."""

import os
import select
import threading
import time

import pytest

from tests.micro.conftest import RAM_BYTES, Machine
from vmm.kvm import PAGE_BYTES, Exit, HostMemory, KvmError, PageFile, SlotFlag, System, VcpuFd
from vmm.kvm._native import lib
from vmm.kvm.hostmem import exchange_32, fetch_and_64, fetch_or_64
from vmm.machine.memory.paging import PageFault, translate

DATA = 0x8000
PORT = 0x42


OUT_AX = b"\xe7" + bytes([PORT])  # out %eax, $PORT


def test_port_exit_shows_registers_and_takes_changed_ones(machine: Machine) -> None:
    vcpu = machine.vcpu(b"\xb8\x78\x56\x34\x12" + OUT_AX + OUT_AX)  # mov $0x12345678, %eax; out; out
    assert vcpu.enter() == Exit.IO
    assert (vcpu.run.io.port, vcpu.run.io.direction, vcpu.run.io.size) == (PORT, 1, 4)
    assert vcpu.regs.rax == 0x12345678
    assert bytes(vcpu.data(vcpu.run.io.data_offset, 4)) == b"\x78\x56\x34\x12"
    vcpu.regs.rax = 0xCAFE
    vcpu.regs_changed()
    assert vcpu.enter() == Exit.IO
    assert vcpu.regs.rax == 0xCAFE


def test_read_only_slot_turns_writes_into_exits(machine: Machine) -> None:
    rom = HostMemory(PAGE_BYTES)
    machine.vm.set_memory(1, 0x200000, PAGE_BYTES, rom.address, SlotFlag.READ_ONLY)
    vcpu = machine.vcpu(b"\xc6\x05\x00\x00\x20\x00\x55" + OUT_AX)  # movb $0x55, 0x200000
    assert vcpu.enter() == Exit.MMIO
    assert (vcpu.run.mmio.phys_addr, vcpu.run.mmio.is_write, vcpu.run.mmio.data[0]) == (0x200000, 1, 0x55)
    assert rom.view[0] == 0
    machine.vm.set_memory(1, 0x200000, 0, rom.address)
    rom.close()


def test_dirty_log_names_the_written_page(machine: Machine) -> None:
    vcpu = machine.vcpu(b"\xc6\x05" + DATA.to_bytes(4, "little") + b"\x55" + OUT_AX)
    machine.vm.dirty_pages(0, RAM_BYTES)
    assert vcpu.enter() == Exit.IO
    assert DATA // PAGE_BYTES in machine.vm.dirty_pages(0, RAM_BYTES)
    assert machine.vm.dirty_pages(0, RAM_BYTES) == []


def test_removed_slot_is_gone(machine: Machine) -> None:
    extra = HostMemory(PAGE_BYTES)
    machine.vm.set_memory(1, 0x200000, PAGE_BYTES, extra.address)
    machine.vm.set_memory(1, 0x200000, 0, extra.address)
    vcpu = machine.vcpu(b"\xa0\x00\x00\x20\x00" + OUT_AX)  # mov 0x200000, %al
    assert vcpu.enter() == Exit.MMIO
    extra.close()


def test_overlapping_slot_is_refused_with_the_ioctls_name(machine: Machine) -> None:
    with pytest.raises(KvmError, match=r"KVM refused KVM_SET_USER_MEMORY_REGION.*EEXIST.*overlap"):
        machine.vm.set_memory(1, 0, PAGE_BYTES, machine.ram.address)


def test_page_shown_in_two_places_is_one_page(machine: Machine) -> None:
    file = PageFile("test", 2)
    own = HostMemory(2 * PAGE_BYTES, file=file)
    machine.ram.view[DATA] = 1
    machine.ram.show(DATA, file, 1)
    assert machine.ram.view[DATA] == 0
    vcpu = machine.vcpu(b"\xc6\x05" + DATA.to_bytes(4, "little") + b"\x77" + OUT_AX)
    assert vcpu.enter() == Exit.IO
    assert own.view[PAGE_BYTES] == 0x77
    machine.ram.blank(DATA, PAGE_BYTES)
    assert machine.ram.view[DATA] == 0
    assert own.view[PAGE_BYTES] == 0x77
    own.close()
    file.close()


def test_atomic_words_report_what_was_there() -> None:
    memory = HostMemory(PAGE_BYTES)
    assert fetch_or_64(memory.address + 8, 5) == 0
    assert fetch_or_64(memory.address + 8, 2) == 5
    assert fetch_and_64(memory.address + 8, 6) == 7
    assert exchange_32(memory.address + 8, 6, 9) == 6
    assert exchange_32(memory.address + 8, 6, 1) == 9
    assert memory.view[8] == 9
    memory.close()


def test_ioeventfd_signals_without_an_exit(machine: Machine) -> None:
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    machine.vm.ioeventfd(doorbell, 0x50, 1, port=True, match=7)
    vcpu = machine.vcpu(b"\xb0\x07\xe6\x50" + OUT_AX)  # mov $7, %al; out %al, $0x50
    assert vcpu.enter() == Exit.IO
    assert vcpu.run.io.port == PORT
    assert os.eventfd_read(doorbell) == 1
    machine.vm.ioeventfd(doorbell, 0x50, 1, port=True, match=7, assign=False)
    os.close(doorbell)


def test_filtered_msr_write_exits(machine: Machine) -> None:
    machine.vm.exit_on_msrs(read=[0x11], written=[0x40000000])
    vcpu = machine.vcpu(b"\xb9\x00\x00\x00\x40\xb8\x34\x12\x00\x00\x31\xd2\x0f\x30" + OUT_AX)
    assert vcpu.enter() == Exit.X86_WRMSR
    assert (vcpu.run.msr.index, vcpu.run.msr.data) == (0x40000000, 0x1234)
    vcpu.run.msr.error = 0
    assert vcpu.enter() == Exit.IO


def test_kick_ends_an_endless_loop_at_once(machine: Machine) -> None:
    vcpu = machine.vcpu(b"\xeb\xfe")
    left: list[float] = []

    def run() -> None:
        vcpu.claim()
        assert vcpu.enter() == Exit.INTERRUPTED
        left.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.1)
    asked = time.monotonic()
    vcpu.kick()
    thread.join(5)
    assert left
    assert left[0] - asked < 1


def test_kick_after_the_thread_has_ended_harms_nobody(machine: Machine) -> None:
    vcpu = machine.vcpu(b"\xeb\xfe")

    def run() -> None:
        vcpu.claim()
        vcpu.disclaim()

    for _ in range(20):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        vcpu.kick()


def test_kick_before_entry_is_not_lost(machine: Machine) -> None:
    vcpu = machine.vcpu(b"\xeb\xfe")
    vcpu.kick()
    assert vcpu.enter() == Exit.INTERRUPTED


def test_many_looping_vcpus_stop_cleanly(machine: Machine) -> None:
    vcpus = [machine.vcpu(b"\xeb\xfe") for _ in range(8)]
    stopping = threading.Event()

    def run(vcpu: VcpuFd) -> None:
        vcpu.claim()
        while not stopping.is_set():
            assert vcpu.enter() == Exit.INTERRUPTED
            vcpu.kick_seen()

    threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in vcpus]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    stopping.set()
    for vcpu in vcpus:
        vcpu.kick()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_irqfd_interrupts_the_guest(machine: Machine) -> None:
    from vmm.kvm import MsiRoute

    line = os.eventfd(0, os.EFD_NONBLOCK)
    machine.vm.irqfd(line, 0)
    machine.vm.set_msi_routes({0: MsiRoute.to_lapic(0, 0x40)})
    # LAPIC on by its memory-mapped registers, interrupts on, wait; the gate of vector 0x40 leads to an out.
    code = b"\xc7\x05\xf0\x00\xe0\xfe\xff\x01\x00\x00" + b"\xfb" + b"\xf4" + b"\xeb\xfd"
    vcpu = machine.vcpu(code)
    machine.with_gates(vcpu, OUT_AX, 0x40)
    timer = threading.Timer(0.2, lambda: os.eventfd_write(line, 1))
    timer.start()
    stopper = threading.Timer(10, vcpu.kick)
    stopper.start()
    assert vcpu.enter() == Exit.IO
    stopper.cancel()
    machine.vm.irqfd(line, 0, assign=False)
    os.close(line)


def test_own_page_walk_agrees_with_kvms(machine: Machine) -> None:
    vcpu = machine.vcpu(OUT_AX)
    tables = {
        0x10000: 0x11007,
        0x11000: 0x12007,
        0x12000: 0x13007,
        0x12008: 0x83,
        0x12010: 0x400087,
        0x13010: 0x55003,
        0x13018: 0,
    }
    for address, entry in tables.items():
        machine.ram.view[address : address + 8] = entry.to_bytes(8, "little")
    sregs = vcpu.get_sregs()
    sregs.cr3, sregs.cr4, sregs.efer = 0x10000, 0x20, 0x500
    sregs.cr0 |= 1 << 31
    sregs.cs.l, sregs.cs.db = 1, 0
    vcpu.set_sregs(sregs)

    class Ram:
        def read(self, gpa: int, size_bytes: int) -> bytes:
            return bytes(machine.ram.view[gpa : gpa + size_bytes])

    for address in (0x2000, 0x2123, 0x3000, 0x200000, 0x2ABCDE, 0x400321, 0x600000, 1 << 39):
        try:
            ours: int | None = translate(Ram(), vcpu.get_sregs(), address, write=False)[0]
        except PageFault:
            ours = None
        assert ours == vcpu.translate(address), hex(address)


def test_refused_ioctl_says_what_to_do(system: System) -> None:
    with pytest.raises(KvmError, match=r"cannot open /dev/kvm: No such file.*modprobe"):
        System("/dev/does-not-exist")
    assert system.capability(lib.KVM_CAP_SYNC_REGS) & lib.KVM_SYNC_X86_REGS


def test_timer_fires_once_and_not_when_nothing_is_due() -> None:
    from vmm.kvm.timer import Timer

    fired: list[int] = []
    timer = Timer(lambda: fired.append(1))
    timer.arm(1)
    assert select.select([timer.fd], [], [], 5)[0]
    timer.on_readable()
    timer.on_readable()
    assert fired == [1]
    timer.close()


@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, 2 << 20, (5 << 20) + PAGE_BYTES])
def test_memory_for_huge_pages_starts_at_one_and_is_all_there(size_bytes: int) -> None:
    many = [HostMemory(size_bytes, huge_pages=True) for _ in range(4)]
    for memory in many:
        assert memory.address % (2 << 20) == 0
        memory.view[0] = memory.view[size_bytes - 1] = 7
    for memory in many:
        memory.close()
