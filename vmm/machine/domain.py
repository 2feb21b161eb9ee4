"""Domain: RAM, vCPUs, event channels, grants and devices, composed from feature flags.

Everything that starts and ends a domain lives here.  `_lock` guards its outcome; each part owns its own state.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot import acpi, pvh
from vmm.boot.elf import ElfImage
from vmm.boot.hypercall_sites import Site
from vmm.config.domain import DomainConfig
from vmm.config.features import Feature, named
from vmm.devices.bus.mmio import Mmio
from vmm.devices.bus.ports import Ports
from vmm.devices.bus.xenbus import Xenbus
from vmm.devices.chips.acpi_pm import AcpiPm
from vmm.devices.chips.uart import COM1, Uart
from vmm.devices.console.pv import Console
from vmm.devices.ring.granted import BACKEND_DOMID
from vmm.host.chardev import Sink
from vmm.host.cpuinfo import first_cpu
from vmm.host.eventloop import EventLoop
from vmm.kvm import EventTable, MsiRoute, System, XenFlag, allow_kicks
from vmm.kvm.capabilities import msr_filter_available
from vmm.machine.cpuid import guest_cpuid
from vmm.machine.irq_routing import Gsis
from vmm.machine.kvm_evtchn import KernelEvents
from vmm.machine.memory.guest import LOW_RAM_END, GuestMemory, SharedBytes
from vmm.machine.vcpu import Vcpu
from vmm.xenabi.constants import CALLBACK_TYPE_VECTOR, E820, HYPERCALL_MSR, PAGE_BYTES, HvmParam, ShutdownReason, Virq
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.evtchn import EventChannels
from vmm.xenabi.evtchn_abi import TwoLevelLayout
from vmm.xenabi.grant_maps import GrantMaps
from vmm.xenabi.grants import TABLE_PAGES, GrantTable
from vmm.xenabi.hypercalls import dispatch, load_privileged
from vmm.xenabi.state import Call, HypervisorState
from vmm.xenabi.transport import PORT, Transport, patch_for
from vmm.xenabi.values import Domid, Gfn, Gpa, GrantRef, Port, VcpuId, XenIdentity
from vmm.xenabi.vcpu_context import flat
from vmm.xenstore.layout import DomainFacts
from vmm.xenstore.service import Xenstore

if TYPE_CHECKING:
    from vmm.devices.console.hypervisor import HypervisorConsole
    from vmm.machine.platform import Pc

MSR_KVM_WALL_CLOCK_NEW = 0x4B56_4D00
MSR_MTRR_DEF_TYPE, MTRR_ENABLED, MTRR_WRITE_BACK = 0x2FF, 1 << 11, 6
SPECIAL_PAGES_START, SPECIAL_PAGES = 0xFEFF_8000, 8
STORE_GFN, CONSOLE_GFN = Gfn(0xFEFFC), Gfn(0xFEFFF)
INTEL_TSS_AREA = 0xFEFF_0000
SHARED_INFO_PAGE, FIRST_GRANT_PAGE = 0, 1
XEN_PAGES = FIRST_GRANT_PAGE + TABLE_PAGES
RESERVED_CONSOLE, RESERVED_STORE = GrantRef(0), GrantRef(1)  # grant_table.h: GNTTAB_RESERVED_*
STORE_CONNECTION_OFFSET, NOT_CONNECTED = 2068, 1  # io/xs_wire.h: `connection`, XENSTORE_RECONNECT
END_OF_INPUT = b"\x04"  # Ctrl-D
END_AGAIN_S = 1
INPUT_CHECK_S = 0.2


class Outcome(NamedTuple):
    """How a domain ended: the reason, and for a crash a sentence and a report."""

    reason: ShutdownReason
    text: str = ""
    report: tuple[str, ...] = ()


class Domain:
    """One domain.  Built by `Hypervisor.create_domain`; `start`, `wait`, `stop`, `close` in that order."""

    def __init__(
        self,
        system: System,
        hypervisor: HypervisorState,
        domid: Domid,
        config: DomainConfig,
        transport: Transport,
        sink: Sink,
        serial: Sink | None = None,
    ) -> None:
        self.hypervisor = hypervisor
        self.kind = named(config.features)
        self.domid = domid
        self.config = config
        self.transport = transport
        self.handle = bytes(16) if domid == 0 else _random_uuid()
        self.privileged = Feature.PRIVILEGED in config.features
        if self.privileged:
            load_privileged()
        self.initial = Feature.INITIAL_DOMAIN in config.features
        self.identity = _identity(config)
        self.hvm_params: dict[int, int] = {}
        self.callback_vector: int | None = None
        self.runstate_flag = False
        self.kept_by_kvm = system.xen_flags() if transport is Transport.KVM_XEN else XenFlag(0)
        if config.observed:
            self.kept_by_kvm &= ~XenFlag.EVTCHN_SEND
        self.shutdown_reason: ShutdownReason | None = None
        self.unknown_hypercalls: Counter[str] = Counter()
        self.hypercall_page_asked = False
        self.hypercalls = 0
        self.hypercall: Callable[[Call], int] = self._hypercall
        """Carries out one hypercall: what RAX gets.  Whoever wants to see or change them puts a function around it."""
        self.console_write = sink.write
        self.console_read: Callable[[int], bytes] = _no_input
        self.outcome: Outcome | None = None
        self._ended = threading.Event()
        self._stopped = False
        self.bus: Xenbus | None = None
        """Its devices, once it has a xenstore."""
        self._console: Console | HypervisorConsole | None = None
        self._uart: Uart | None = None
        self._lock = threading.Lock()
        self.ports, self.mmio = Ports(), Mmio()
        self.pc: Pc | None = None
        self.vcpus: list[Vcpu] = []
        self.kernel_events = KernelEvents(self)
        self.event_table = EventTable(config.possible_vcpus)
        self.events = EventChannels(self.vcpus, self.event_table, kernel=self.kernel_events)
        self._loops = self._timers, self._console_loop = (
            EventLoop(f"{config.name}-timers"),
            EventLoop(f"{config.name}-console"),
        )
        self._built = False
        self.vm = system.create_vm()
        self.memory = GuestMemory(self.vm, XEN_PAGES, shareable=config.shareable)
        try:
            self._build(system, sink, serial)
        except BaseException:
            self.close()
            raise

    def _build(self, system: System, sink: Sink, serial: Sink | None) -> None:
        config, vm = self.config, self.vm
        allow_kicks()
        vm.set_tss_area(INTEL_TSS_AREA)
        lines = acpi.IOAPIC_LINES if Feature.IOAPIC in config.features else 0
        vm.split_irqchip(lines)
        self.gsis = Gsis(vm, lines)
        if self.transport is Transport.KVM_XEN:
            vm.xen_config(HYPERCALL_MSR)
        elif msr_filter_available(system):
            vm.exit_on_msrs([HYPERCALL_MSR])
        has_pc = Feature.PCI in config.features
        self.memory.add_ram(config.memory_bytes, acpi.ECAM_BASE if has_pc else LOW_RAM_END)
        self.memory.add_special(acpi.ACPI_BASE, acpi.ACPI_BYTES, E820.ACPI, acpi.ACPI_USED_BYTES)
        self.memory.write(acpi.ACPI_BASE, acpi.build(config.possible_vcpus, pc=has_pc))
        self.memory.add_special(SPECIAL_PAGES_START, SPECIAL_PAGES * PAGE_BYTES, E820.RESERVED)
        supported, brand = system.supported_cpuid(), first_cpu("model name").encode()
        for index in range(config.possible_vcpus):
            vcpu = Vcpu(self, index, vm.create_vcpu(acpi.apic_id(index)))
            vcpu.time.in_loop = not config.observed
            self.vcpus.append(vcpu)
            vcpu.kvm.set_cpuid(
                guest_cpuid(
                    supported,
                    vcpu=index,
                    vcpus=config.possible_vcpus,
                    domid=self.domid,
                    version=config.xen_version[:2],
                    tsc_khz=vcpu.kvm.tsc_khz(),
                    brand=brand,
                )
            )
            vcpu.kvm.set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED | MTRR_WRITE_BACK)
            vcpu.kvm.describe_loop(vm.fd, index, PORT, self.memory.ram(), self.event_table)
            vcpu.upcall_gsi = self.gsis.allocate()
            vm.irqfd(vcpu.upcall_fd, vcpu.upcall_gsi)
            if XenFlag.EVTCHN_SEND in self.kept_by_kvm:
                vcpu.kvm.xen_set_vcpu_id(index)
            for timer in (vcpu.time.singleshot, vcpu.time.periodic, vcpu.callback_check):
                self._timers.watch(timer.fd, timer.on_readable)
        self.grant_maps = GrantMaps()
        self.grants = GrantTable(FIRST_GRANT_PAGE, self.memory.xen_page(FIRST_GRANT_PAGE, TABLE_PAGES))
        if has_pc:
            self._build_pc()
        self.power = AcpiPm(
            acpi.PM1A_EVENT_PORT,
            acpi.PM1A_CONTROL_PORT,
            acpi.GPE0_PORT,
            acpi.RESET_PORT,
            {acpi.S5_SLEEP_TYPE: lambda: self.shutdown(ShutdownReason.poweroff)},
            self._reset,
            self.pc.set_sci if self.pc else None,
        )
        self.ports.own(self.power, *self.power.ranges)
        if serial is not None:
            self._uart = Uart(COM1, serial)
            self.ports.own(self._uart, *self._uart.ranges)
        self._store_port = self._console_port = Port(0)
        if not config.own_xenstore:
            self._store_port = self.events.alloc_unbound(BACKEND_DOMID)  # as the toolstack allocates them: port 1
        if self.initial:
            self._connect_hypervisor_console(sink)
        else:
            self._connect_console(sink)

        self._built = True

    def _build_pc(self) -> None:
        from vmm.machine.platform import Pc  # most domains have none

        self.pc = Pc(self.vm, self.gsis, self.memory, self.ports, self.mmio, self._reset)
        for timer in self.pc.timers:
            self._timers.watch(timer.fd, timer.on_readable)

    def _reset(self) -> None:
        self.shutdown(ShutdownReason.reboot)

    def _connect_hypervisor_console(self, sink: Sink) -> None:
        from vmm.devices.console.hypervisor import HypervisorConsole

        console = self._console = HypervisorConsole(sink, lambda: self.events.send_virq(Virq.CONSOLE, VcpuId(0)))
        self.console_write, self.console_read = console.write, console.read

    def _connect_console(self, sink: Sink) -> None:
        port = self._console_port = self.events.alloc_unbound(BACKEND_DOMID)
        page = self.memory.shared(CONSOLE_GFN * PAGE_BYTES, PAGE_BYTES)
        console = self._console = Console(page, sink, lambda: self.events.deliver(port))
        bell = self._console_loop.doorbell(console.on_event)
        self.events.connect(port, BACKEND_DOMID, Port(0), bell.ring, bell.fd)
        self.console_write = console.write
        self.grants.give(RESERVED_CONSOLE, BACKEND_DOMID, CONSOLE_GFN)
        self.hvm_params[HvmParam.CONSOLE_PFN] = CONSOLE_GFN
        self.hvm_params[HvmParam.CONSOLE_EVTCHN] = port

    def connect_store(self, xenstore: Xenstore) -> None:
        """Let the guest reach xenstore; `xenstore` forgets the domain before its memory goes."""
        facts = DomainFacts(
            self.domid, self.config.name, _uuid_text(self.handle), self.config.memory_bytes >> 10, self.config.vcpus,
            self.config.possible_vcpus, self._store_port, STORE_GFN, self._console_port, CONSOLE_GFN,
        )  # fmt: skip
        bell = xenstore.introduce(facts, self._offer_store(), lambda: self.events.deliver(self._store_port))
        self.events.connect(self._store_port, BACKEND_DOMID, Port(0), bell.ring, bell.fd)
        if not self.initial:
            self.bus = Xenbus(xenstore, self)

    def leave_store_to_dom0(self) -> None:
        """The same where xenstored runs in dom0: the guest waits until somebody there introduces it."""
        self._offer_store().write(STORE_CONNECTION_OFFSET, NOT_CONNECTED.to_bytes(4, "little"))

    def _offer_store(self) -> SharedBytes:
        self.hvm_params[HvmParam.STORE_PFN] = STORE_GFN
        self.hvm_params[HvmParam.STORE_EVTCHN] = self._store_port
        self.grants.give(RESERVED_STORE, BACKEND_DOMID, STORE_GFN)
        return self.memory.shared(STORE_GFN * PAGE_BYTES, PAGE_BYTES)

    def load(self, image: ElfImage, modules: list[pvh.Module], sites: list[Site]) -> None:
        """Put an image into memory and the first vCPU at its entry.  ImageError."""
        flags = pvh.INITIAL_DOMAIN_FLAGS if self.initial else 0
        entry = pvh.load(self.memory, image, self.config.command_line, modules, acpi.RSDP_ADDRESS, flags)
        for site in sites:
            self.memory.write(site.gpa, patch_for(site.instruction))
        self.vcpus[0].enter(flat(entry.eip, entry.ebx))

    # ------------------------------------------------------------------------------- running, ending

    def start(self) -> None:
        """Let the guest run."""
        for loop in self._loops:
            loop.start()
        for vcpu in self.vcpus:
            vcpu.start()

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """How the domain ended, or None where it still runs after the timeout."""
        self._ended.wait(timeout_s)
        return self.outcome

    def shutdown(self, reason: ShutdownReason) -> None:
        """The guest ends itself; its vCPUs stop."""
        if self.shutdown_reason is not None and reason is ShutdownReason.poweroff:
            reason = self.shutdown_reason
        text = "the guest's own kernel says that it crashed" if reason is ShutdownReason.crash else ""
        self._end(Outcome(reason, text))

    def crash(self, reason: str, vcpu_id: int | None = None) -> None:
        """End the domain for what it did; with the registers where its own vCPU says so."""
        report = self.vcpus[vcpu_id].report() if vcpu_id is not None else []
        self._end(Outcome(ShutdownReason.crash, reason, tuple(report)))

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            first = self.outcome is None
            if first:
                self.outcome = outcome
        for vcpu in self.vcpus:
            vcpu.stop()
        self._ended.set()
        if first:
            self.hypervisor.ended(self)

    def type(self, data: bytes) -> None:
        """Type on the guest's console; returns when the guest has room for more.  From any thread but the domain's own."""
        console, taken = self._console, threading.Event()
        if console is not None and not self._stopped:
            self._console_loop.post(lambda: console.take_input(data, taken.set))
            while not taken.wait(INPUT_CHECK_S) and not self._ended.is_set():
                pass

    def end_input(self) -> None:
        """Have every read of the guest's console find the end of the input, until the domain ends.

        A Ctrl-D ends one read, and none where it comes before the shell is there or while a command reads nothing.
        """
        while True:
            self.type(END_OF_INPUT)
            if self._ended.wait(END_AGAIN_S):
                return

    def type_serial(self, data: bytes) -> None:
        """Type on the guest's serial port; the same, where it has one."""
        if self._uart is not None:
            self._uart.type(data)

    def pause(self) -> None:
        """Stop every vCPU between two instructions; time and devices go on."""
        for vcpu in self.vcpus:
            vcpu.pause()

    def resume(self) -> None:
        """Let them go on."""
        for vcpu in self.vcpus:
            vcpu.resume()

    def interrupt(self) -> None:
        """Make `wait` return without an outcome: somebody has left the guest."""
        self._ended.set()

    def stop(self) -> None:
        """Stop every vCPU and let the devices finish what they were given."""
        for vcpu in self.vcpus:
            vcpu.stop()
        if self._uart is not None:
            self._uart.close()
        for vcpu in self.vcpus:
            vcpu.join()
        if self._stopped:
            return
        self._stopped = True
        if self.bus is not None:
            self.bus.close()
        if self.pc is not None:
            self.pc.stop()
        if self._console:
            self._console_loop.post(self._console.on_event)
        for loop in self._loops:
            loop.stop()

    def close(self) -> None:
        """Stop, and release all that the domain holds, of itself and of others."""
        self.stop()
        self.events.end()
        if self._built:
            self.grant_maps.end_all(self.memory)
            self.grants.close()
        for vcpu in self.vcpus:
            vcpu.close()
        self.vcpus = []
        if self.pc is not None:
            self.pc.close()
        self.vm.close()
        self.memory.close()

    # --------------------------------------------------------------------- what hypercalls ask of it

    def _hypercall(self, call: Call) -> int:
        self.hypercalls += 1
        return dispatch(call)

    def system_time_ns(self) -> int:
        """The guest's system time."""
        return self.vm.clock_ns()

    def route_upcall(self, vcpu_id: int, vector: int) -> None:
        """Send a vCPU's upcalls to a vector at its LAPIC."""
        self.gsis.route(self.vcpus[vcpu_id].upcall_gsi, MsiRoute.to_lapic(acpi.apic_id(vcpu_id), vector))

    def set_callback(self, value: int) -> None:
        """HVM_PARAM_CALLBACK_IRQ: the vector of all vCPUs that have none of their own.  A PVH domain has no GSIs."""
        self.callback_vector = value & 0xFF if value >> 56 == CALLBACK_TYPE_VECTOR else None
        self.kernel_events.set_callback_vector(self.callback_vector)
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
        return self.pc is not None and segment == 0 and self.pc.has(bus, devfn)

    def why_no_hypercalls(self) -> str | None:
        """A sentence where the guest never made a hypercall though it could have been one of Xen's."""
        if self.hypercalls or self.transport is not Transport.PAGE:
            return None
        if self.hypercall_page_asked:
            return "the guest asked for the hypercall page but never called into it"
        return (
            "the guest never asked for the hypercall page and has no vmcall that could be patched, so none of its "
            "hypercalls can have reached pyvmm; a host whose KVM has KVM_XEN needs neither"
        )


def _no_input(count: int) -> bytes:
    return b""


def _random_uuid() -> bytes:
    # Version 4, variant 1 (RFC 9562); the uuid module would cost 8 ms at every start.
    data = bytearray(os.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)


def _uuid_text(handle: bytes) -> str:
    digits = handle.hex()
    return "-".join(digits[start:end] for start, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def _identity(config: DomainConfig) -> XenIdentity:
    version = config.xen_version
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
