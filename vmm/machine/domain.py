"""A domain: its parts, and the verbs by which a toolstack gives it memory, registers and life.

`Hypervisor.create` makes one, paused and with nothing in it; every state that it goes through is in `lifecycle`.  The two
toolstacks, dom0's hypercalls and `vmm.toolstack`, use the same verbs, while other domains run.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm.boot import acpi
from vmm.config.features import Feature, named
from vmm.config.shape import Shape
from vmm.host.cpuinfo import cpu_flags, first_cpu
from vmm.host.eventloop import EventLoop
from vmm.kvm import EventTable, KvmError, System, XenFlag, allow_kicks
from vmm.kvm.capabilities import msr_filter_available
from vmm.machine.console import DomainConsole
from vmm.machine.cpuid import guest_cpuid
from vmm.machine.hooks import HookList
from vmm.machine.irq_routing import Gsis
from vmm.machine.kvm_evtchn import KernelEvents
from vmm.machine.lifecycle import By, DomainLife, Hold, Life, Outcome, Verb, WrongLife
from vmm.machine.memory.guest import LOW_RAM_END, NOTHING_BESIDE, SLACK_PAGES, Beside, GuestMemory
from vmm.machine.parts import Callback
from vmm.machine.platform import Board
from vmm.machine.upcall import UpcallLine
from vmm.machine.vcpu import Vcpu
from vmm.machine.watchdog import Watchdogs
from vmm.xenabi.constants import CALLBACK_TYPE_VECTOR, HYPERCALL_MSR, PAGE_BYTES, ShutdownReason
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.evtchn_abi import TwoLevelLayout
from vmm.xenabi.grant_maps import GrantMaps
from vmm.xenabi.grants import TABLE_PAGES, GrantTable
from vmm.xenabi.hypercalls import dispatch, load_privileged
from vmm.xenabi.state import Call, HypervisorState
from vmm.xenabi.transport import PORT, Transport
from vmm.xenabi.values import Domid, Gfn, Gpa, HypercallOutcome, VcpuId, XenIdentity
from vmm.xenabi.versions import behaviour

if TYPE_CHECKING:
    from vmm.devices.manager import DeviceManager

MSR_KVM_WALL_CLOCK_NEW = 0x4B56_4D00
MSR_KVM_CLOCKS = (0x11, 0x12, *range(MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_WALL_CLOCK_NEW + 8))
"""Where KVM has its own paravirtual features, which a guest of Xen's does not see."""

MSR_MTRR_DEF_TYPE, MTRR_ENABLED, MTRR_WRITE_BACK = 0x2FF, 1 << 11, 6
MACHINE_CHECK_BANKS = 2
INTEL_TSS_AREA = 0xFEFF_0000
SHARED_INFO_PAGE, FIRST_GRANT_PAGE = 0, 1
XEN_PAGES = FIRST_GRANT_PAGE + TABLE_PAGES


class Account:
    """What is counted of a domain's hypercalls; by its vCPUs' threads, in which a lost count does no harm."""

    def __init__(self) -> None:
        self.hypercalls = 0
        self.unknown: Counter[str] = Counter()
        self.page_asked = False
        """Whether the guest has asked for its hypercall page."""


class Domain:
    """One domain.  Its life has a lock, and so has each part; what is set by a hypercall is set in its vCPU's thread."""

    def __init__(
        self, system: System, hypervisor: HypervisorState, domid: Domid, shape: Shape, transport: Transport
    ) -> None:
        self.hypervisor = hypervisor
        self.domid = domid
        self.shape = shape
        named(shape.features)
        self.transport = transport
        self.handle = bytes(16) if domid == 0 else _random_uuid()
        if Feature.PRIVILEGED in shape.features:
            load_privileged()
        self.identity = _identity(shape)
        self.behaviour = behaviour(*shape.xen_version[:2])
        self.life = DomainLife()
        self.account = Account()
        self.hvm_params: dict[int, int] = {}
        self.callback = Callback()
        self.runstate_flag = False
        self.shutdown_reason: ShutdownReason | None = None
        """What the guest has said beforehand that its shutdown will mean."""
        self.kept_by_kvm = system.xen_flags() if transport is Transport.KVM_XEN else XenFlag(0)
        self.plug_board: Callable[[], DeviceManager] | None = None
        """Makes what its devices stand on, for the first of them; None where it has nothing of the kind."""
        self._devices: DeviceManager | None = None
        self.served = False
        """Whether pyvmm's own xenstore is the domain's."""
        self.vcpus: list[Vcpu] = []
        self.hooks = HookList(self._rehook)
        self._carry: Callable[[Call], HypercallOutcome] = dispatch
        self.event_table = EventTable(shape.vcpus)
        self._timers = EventLoop(f"{shape.name}-timers")
        self.console = DomainConsole(shape.name, lambda: self.life.over)
        self._closing: list[Callable[[], None]] = [self._timers.stop, self.console.stop]
        """What releases that which there is so far, in the order in which it was made."""
        try:
            self._build(system)
        except BaseException:
            self.close()
            raise

    def _build(self, system: System) -> None:
        shape = self.shape
        allow_kicks()
        vm = self.vm = system.create_vm()
        self._closing.append(vm.close)
        has_pci = Feature.PCI in shape.features
        self.memory = GuestMemory(
            vm,
            XEN_PAGES,
            owner=self.domid,
            limit_bytes=shape.memory_bytes,
            low_end=acpi.ECAM_BASE if has_pci else LOW_RAM_END,
            shareable=shape.shareable,
            beside=NOTHING_BESIDE if self.privileged else Beside(self.behaviour.special_pages, SLACK_PAGES),
        )
        self._closing.insert(-1, self.memory.close)  # after its machine, whose slots it is in
        self.kernel_events = KernelEvents(vm, self.kept_by_kvm, self.callback, self.vcpus)
        self.events = EventChannels(
            self.domid, self.vcpus, self.event_table, self._ports_of, shape.event_ports, self.kernel_events
        )
        self.grants = GrantTable(FIRST_GRANT_PAGE, self.memory.xen_page(FIRST_GRANT_PAGE, TABLE_PAGES), shape.grant_frames)
        self.grant_maps = GrantMaps(self._grants_of, shape.maptrack_entries)
        vm.set_tss_area(INTEL_TSS_AREA)
        lines = acpi.IOAPIC_LINES if Feature.IOAPIC in shape.features else 0
        vm.split_irqchip(lines)
        gsis = Gsis(vm, lines)
        if self.transport is Transport.KVM_XEN:
            vm.xen_config(HYPERCALL_MSR)
        if msr_filter_available(system):
            written = () if self.transport is Transport.KVM_XEN else (HYPERCALL_MSR,)
            vm.exit_on_msrs(read=(HYPERCALL_MSR, *MSR_KVM_CLOCKS), written=(*written, *MSR_KVM_CLOCKS))
        self.board = Board(shape.features, vm, gsis, self.memory, self._power_off, self._reset)
        self._closing.append(self.board.close)
        self.ports, self.mmio = self.board.ports, self.board.mmio
        self._create_vcpus(system, gsis)
        self.watchdogs = Watchdogs(lambda: self.shutdown(ShutdownReason.watchdog))
        self._closing.append(self.watchdogs.close)
        for timer in (*self.board.timers, *self.watchdogs.timers):
            self._timers.watch(timer.fd, timer.on_readable)

    def _create_vcpus(self, system: System, gsis: Gsis) -> None:
        shape, vm = self.shape, self.vm
        supported, brand = system.supported_cpuid(), first_cpu("model name").encode()
        has_umip = "umip" in cpu_flags()

        def line(vcpu: Vcpu) -> UpcallLine:
            return UpcallLine(vcpu, vm, gsis, self.event_table, self.callback, self.kernel_events)

        for index in range(shape.vcpus):
            vcpu = Vcpu(self, index, vm.create_vcpu(acpi.apic_id(index)), line)
            self.vcpus.append(vcpu)
            vcpu.kvm.set_cpuid(
                guest_cpuid(
                    supported,
                    vcpu=index,
                    vcpus=shape.vcpus,
                    domid=self.domid,
                    version=shape.xen_version[:2],
                    tsc_khz=vcpu.kvm.tsc_khz(),
                    brand=brand,
                    has_umip=has_umip,
                )
            )
            vcpu.kvm.set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED | MTRR_WRITE_BACK)
            vcpu.kvm.setup_machine_check(MACHINE_CHECK_BANKS)
            if XenFlag.EVTCHN_SEND in self.kept_by_kvm:
                vcpu.kvm.xen_set_vcpu_id(index)
            for timer in (vcpu.clock.singleshot, vcpu.clock.periodic, vcpu.line.check):
                self._timers.watch(timer.fd, timer.on_readable)

    # ---------------------------------------------------------------------------- a toolstack's verbs

    @property
    def name(self) -> str:
        """What it is called; of no meaning to the guest."""
        return self.shape.name

    @property
    def devices(self) -> "DeviceManager | None":
        """Its devices; None where it has no bus that they could stand on."""
        if self._devices is None and self.plug_board is not None:
            self._devices = self.plug_board()
        return self._devices

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it may still run."""
        return self.life.outcome

    def unpause(self) -> None:
        """Take a pause back; the domain runs once all are, that of its creation among them.  WrongLife."""
        first = self.life.state is Life.CREATED
        if not self.life.ask(Verb.UNPAUSE):
            return
        if first:
            self._start()
        for vcpu in self.vcpus:
            vcpu.resume(Hold.DOMAIN)

    def _start(self) -> None:
        ram = self.memory.ram()
        for vcpu in self.vcpus:
            vcpu.kvm.describe_loop(self.vm.fd, vcpu.id, PORT, ram, self.event_table)
        for loop in (self._timers, self.console.loop):
            loop.start()
        for vcpu in self.vcpus:
            vcpu.start()

    def pause(self) -> None:
        """Stop every vCPU between two instructions; time and devices go on.  Counts.  WrongLife."""
        self.life.ask(Verb.PAUSE)
        for vcpu in self.vcpus:
            vcpu.pause(Hold.DOMAIN)

    def shutdown(self, reason: ShutdownReason) -> None:
        """The guest ends itself; its vCPUs stop."""
        if self.shutdown_reason is not None and reason is ShutdownReason.poweroff:
            reason = self.shutdown_reason
        if reason is ShutdownReason.crash:
            self.crash("the guest's own kernel says that it crashed", self._current_vcpu())
        else:
            self._end(Outcome(reason))

    def watchdog(self, number: int, timeout_s: int) -> int:
        """SCHEDOP_watchdog: start, set or stop a timer that ends the domain."""
        return self.watchdogs.set(number, timeout_s)

    def _current_vcpu(self) -> int | None:
        return next((vcpu.id for vcpu in self.vcpus if vcpu.is_own_thread()), None)

    def crash(self, reason: str, vcpu_id: int | None = None) -> None:
        """End the domain for what it did; with the registers where its own vCPU says so."""
        report = self.vcpus[vcpu_id].report() if vcpu_id is not None else []
        self._end(Outcome(ShutdownReason.crash, reason, tuple(report)))

    def _end(self, outcome: Outcome) -> None:
        first = self.life.end(outcome, By.GUEST)
        for vcpu in self.vcpus:
            vcpu.stop()
        if first:
            self.hypervisor.ended(self)

    def _power_off(self) -> None:
        self.shutdown(ShutdownReason.poweroff)

    def _reset(self) -> None:
        self.shutdown(ShutdownReason.reboot)

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """How the domain ended; None where it has not within the timeout, or somebody has left the guest."""
        return self.life.wait(timeout_s)

    def interrupt(self) -> None:
        """Make `wait` return without an outcome: somebody has left the guest."""
        self.life.interrupt()

    def stop(self) -> None:
        """Begin to destroy it: stop every vCPU, and let the devices finish what they were given.  Again does no harm."""
        try:
            self.life.ask(Verb.DESTROY)
        except WrongLife:
            return
        for vcpu in self.vcpus:
            vcpu.stop()
        self.console.stop_serial()
        for vcpu in self.vcpus:
            vcpu.join()
        if self._devices is not None:
            self._devices.close()
        self.console.stop()
        self._timers.stop()

    def close(self) -> None:
        """Destroy it: stop, and release all that it holds, of itself and of others."""
        self.stop()
        if self.life.state is Life.GONE:
            return
        if self.vcpus:
            self.events.end()
            self.grant_maps.end_all(self.memory)
            self.grants.close()
        for vcpu in self.vcpus:
            vcpu.close()
        for release in reversed(self._closing):
            release()
        self.life.ask(Verb.RELEASED, By.HYPERVISOR)

    # --------------------------------------------------------------------- what hypercalls ask of it

    @property
    def privileged(self) -> bool:
        """Whether it may make the toolstack's hypercalls."""
        return Feature.PRIVILEGED in self.shape.features

    @property
    def observed(self) -> bool:
        """Whether somebody wants to see all that happens."""
        return bool(self.hooks)

    def _rehook(self) -> None:
        self._carry = self.hooks.around_hypercalls(dispatch)
        self.events.watch(self.hooks.event_hook(), observed=self.observed)
        for vcpu in self.vcpus:
            vcpu.rehook()
        self.hypervisor.rehooked()

    def hypercall(self, call: Call) -> HypercallOutcome:
        """Carry out one hypercall, in its vCPU's thread."""
        self.account.hypercalls += 1
        return self._carry(call)

    def refused_hypercall(self) -> None:
        """User code of the guest's has tried one."""
        self.account.hypercalls += 1

    def hypercall_page_written(self) -> None:
        """The guest has its hypercall page."""
        self.account.page_asked = True

    @property
    def unknown_hypercalls(self) -> Counter[str]:
        """Those that nobody carries out, by name, and how often."""
        return self.account.unknown

    @property
    def console_write(self) -> Callable[[bytes], None]:
        """CONSOLEIO_write."""
        return self.console.write

    @property
    def console_read(self) -> Callable[[int], bytes]:
        """CONSOLEIO_read."""
        return self.console.read

    def around_exit(self, vcpu: VcpuId, reason: int, proceed: Callable[[], None]) -> Callable[[], None]:
        """What handles an exit, with the hooks around it."""
        return self.hooks.around_exit(vcpu, reason, proceed)

    def end_of_interrupt(self, vector: int) -> None:
        """A level interrupt of the IOAPIC's has been acknowledged."""
        self.board.end_of_interrupt(vector)

    def clock_ns(self) -> int:
        """The guest's system time, as KVM keeps it; 0 once the domain is gone."""
        try:
            return self.vm.clock_ns()
        except KvmError:
            if self.life.over:
                return 0
            raise

    def system_time_ns(self) -> int:
        """The guest's system time, as a hypercall is told of it."""
        return self.hooks.time_ns(self.clock_ns())

    def set_callback(self, value: int) -> None:
        """HVM_PARAM_CALLBACK_IRQ: the vector of all vCPUs that have none of their own.  A PVH domain has no GSIs."""
        self.callback.vector = value & 0xFF if value >> 56 == CALLBACK_TYPE_VECTOR else None
        self.kernel_events.set_callback_vector(self.callback.vector)
        for vcpu in self.vcpus:
            vcpu.upcall()

    def vm_assist(self, assist: int, *, enabled: bool) -> None:
        """VMASST_TYPE_runstate_update_flag is the one that a PVH guest may have."""
        self.runstate_flag = enabled
        if XenFlag.RUNSTATE_UPDATE_FLAG in self.kept_by_kvm:
            self.vm.xen_set_runstate_flag(enabled)

    def place_shared_info(self, gfn: Gfn, abi: Abi) -> None:
        """Show the shared info page at `gfn`, where KVM then keeps its clocks."""
        self.memory.place_xen_page(gfn, SHARED_INFO_PAGE)
        page = self.memory.xen_page(SHARED_INFO_PAGE)
        if self.transport is Transport.KVM_XEN:
            self.vm.xen_set_long_mode(abi is Abi.X86_64)
        self.kernel_events.start(gfn, self.events.ipis())
        self.events.attach(page, abi)
        base = gfn * PAGE_BYTES
        for vcpu in self.vcpus:
            vcpu.use_shared_info(Gpa(base))
        wall_clock = base + TwoLevelLayout(abi).wall_clock_offset
        self.vcpus[0].post(lambda: self.vcpus[0].kvm.set_msr(MSR_KVM_WALL_CLOCK_NEW, wall_clock))

    @property
    def ended_by(self) -> ShutdownReason | None:
        """Why it runs no more; None while it does."""
        return None if self.outcome is None else self.outcome.reason

    def has_pci_device(self, segment: int, bus: int, devfn: int) -> bool:
        """Whether a function is on its PCI bus."""
        return self.board.has_pci_device(segment, bus, devfn)

    def _ports_of(self, domid: Domid) -> EventChannels | None:
        found = self.hypervisor.find(domid)
        return None if found is None else found.events

    def _grants_of(self, domid: Domid) -> GrantTable | None:
        found = self.hypervisor.find(domid)
        return None if found is None else found.grants


def _random_uuid() -> bytes:
    # Version 4, variant 1 (RFC 9562); the uuid module would cost 8 ms at every start.
    data = bytearray(os.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)


def _identity(shape: Shape) -> XenIdentity:
    version = shape.xen_version
    name = f"xen-{version.major}.0" if version.major != 4 else "xen-3.0"
    return XenIdentity(
        *version,
        compiler="pyvmm",
        compiled_by="pyvmm",
        compile_domain="",
        compile_date="",
        capabilities=f"{name}-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ",
        changeset="",
    )
