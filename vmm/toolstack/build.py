"""Building a domain: from what a user asks for to one that is paused, with an image in it, by the verbs of `machine`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmm.boot import acpi, pvh
from vmm.boot.elf import ElfImage
from vmm.boot.hypercall_sites import Site
from vmm.config.domain import DomainConfig
from vmm.config.features import Feature
from vmm.devices.kind import Spec
from vmm.errors import UsageError
from vmm.host.chardev import Sink
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack.transports import plan_hypercalls
from vmm.xenabi.constants import E820, PAGE_BYTES, HvmParam, Virq
from vmm.xenabi.interfaces import SharedBytes
from vmm.xenabi.transport import Transport, patch_for
from vmm.xenabi.values import BACKEND_DOMID, Gfn, GrantRef, Port, VcpuId
from vmm.xenabi.vcpu_context import flat
from vmm.xenstore.layout import DomainFacts

if TYPE_CHECKING:
    from vmm.devices.manager import DeviceManager

SPECIAL_PAGES_START, SPECIAL_PAGES = 0xFEFF_8000, 8
STORE_GFN, CONSOLE_GFN = Gfn(0xFEFFC), Gfn(0xFEFFF)
RESERVED_CONSOLE, RESERVED_STORE = GrantRef(0), GrantRef(1)  # grant_table.h: GNTTAB_RESERVED_*
STORE_CONNECTION_OFFSET, NOT_CONNECTED = 2068, 1  # io/xs_wire.h: `connection`, XENSTORE_RECONNECT


def build(
    hypervisor: Hypervisor,
    config: DomainConfig,
    image: ElfImage,
    modules: list[pvh.Module],
    sink: Sink,
    serial: Sink | None = None,
    *,
    observed: bool = False,
    shareable: bool = False,
) -> Domain:
    """A domain with an image in it, ready to be unpaused.  PyvmmError, and then nothing of it is left.

    `observed`: somebody wants to see every hypercall, and KVM_XEN would answer some by itself (SCHEDOP_yield, and
    SCHEDOP_poll as if it were that), so it is done without unless asked for.
    `shareable`: other domains may map its memory.
    """
    kvm_xen = config.kvm_xen and (not observed or config.transport is Transport.KVM_XEN)
    plan = plan_hypercalls(hypervisor.system, image, config.transport, kvm_xen=kvm_xen)
    domain = hypervisor.create(config.shape(shareable=shareable), plan.transport)
    try:
        populate(domain)
        if serial is not None:
            uart = domain.console.connect_serial(serial)
            domain.ports.own(uart, *uart.ranges)
        store_port = Port(0)
        if not config.own_xenstore:
            store_port = domain.events.alloc_unbound(BACKEND_DOMID)  # as the toolstack allocates them: port 1
        console_port = connect_console(domain, sink)
        initial = hypervisor.find(0)
        if initial is not None and initial is not domain and not initial.served:
            _offer_store(domain, store_port).write(STORE_CONNECTION_OFFSET, NOT_CONNECTED.to_bytes(4, "little"))
        elif not config.own_xenstore:
            introduce(hypervisor, domain, config, store_port, console_port)
        provide_bus(hypervisor, domain)
        attach_devices(domain, config.devices)
        load(domain, image, config.command_line, modules, plan.sites)
    except BaseException:
        hypervisor.destroy(domain)
        raise
    kind = "*** Building a PVH Dom0 ***" if config.initial else f"d{domain.domid}: made by pyvmm ({config.name})"
    hypervisor.log.note(kind)
    return domain


def populate(domain: Domain) -> None:
    """All RAM that it may have, the ACPI tables, and the special pages."""
    memory, pc = domain.memory, Feature.PCI in domain.shape.features
    memory.add_ram()
    memory.add_special(acpi.ACPI_BASE, acpi.ACPI_BYTES, E820.ACPI, acpi.ACPI_USED_BYTES)
    memory.write(acpi.ACPI_BASE, acpi.build(domain.shape.vcpus, pc=pc))
    memory.add_special(SPECIAL_PAGES_START, SPECIAL_PAGES * PAGE_BYTES, E820.RESERVED)


def connect_console(domain: Domain, sink: Sink) -> Port:
    """A PV console, or for the initial domain the hypervisor's: the port of the first, 0 for the other."""
    events = domain.events
    if domain.shape.initial:
        domain.console.connect_hypervisor(sink, lambda: events.send_virq(Virq.CONSOLE, VcpuId(0)))
        return Port(0)
    port = events.alloc_unbound(BACKEND_DOMID)
    page = domain.memory.shared(CONSOLE_GFN * PAGE_BYTES, PAGE_BYTES)
    bell = domain.console.connect_ring(page, sink, lambda: events.deliver(port))
    events.connect(port, BACKEND_DOMID, bell)
    domain.grants.give(RESERVED_CONSOLE, BACKEND_DOMID, CONSOLE_GFN)
    domain.hvm_params[HvmParam.CONSOLE_PFN] = CONSOLE_GFN
    domain.hvm_params[HvmParam.CONSOLE_EVTCHN] = port
    return port


def introduce(hypervisor: Hypervisor, domain: Domain, config: DomainConfig, store_port: Port, console_port: Port) -> None:
    """Let the guest reach pyvmm's xenstore, which forgets the domain before its memory goes."""
    facts = DomainFacts(
        domain.domid, domain.name, _uuid_text(domain.handle), domain.shape.memory_bytes >> 10, config.vcpus,
        domain.shape.vcpus, store_port, STORE_GFN, console_port, CONSOLE_GFN,
    )  # fmt: skip
    events = domain.events
    bell = hypervisor.xenstore.introduce(facts, _offer_store(domain, store_port), lambda: events.deliver(store_port))
    events.connect(store_port, BACKEND_DOMID, bell)
    domain.served = True


def attach_devices(domain: Domain, specs: Sequence[Spec]) -> None:
    """Give it devices, in order.  PyvmmError."""
    if not specs:
        return
    devices = domain.devices
    if devices is None:
        raise UsageError(
            f"{domain.name}: with its xenstore in dom0, a guest's disks, network cards and shares are for dom0 to give; "
            "leave them out, or use --xenstore internal"
        )
    for spec in specs:
        devices.attach(spec)


def provide_bus(hypervisor: Hypervisor, domain: Domain) -> None:
    """Say what its devices will stand on: PCI where it has that, else xenbus where pyvmm serves its xenstore."""
    vcpus, pci, wiring = domain.shape.vcpus, domain.board.pci, domain.board.wiring

    def on_pci() -> "DeviceManager":
        from vmm.devices.manager import DeviceManager  # most guests have no devices
        from vmm.devices.virtio.bus import VirtioBus

        assert pci is not None
        assert wiring is not None
        return DeviceManager(VirtioBus(pci, wiring), vcpus)

    def on_xenbus() -> "DeviceManager":
        from vmm.devices.bus.xenbus import Xenbus
        from vmm.devices.manager import DeviceManager

        return DeviceManager(Xenbus(hypervisor.xenstore, domain), vcpus)

    if pci is not None:
        domain.plug_board = on_pci
    elif domain.served:
        domain.plug_board = on_xenbus


def _offer_store(domain: Domain, port: Port) -> SharedBytes:
    domain.hvm_params[HvmParam.STORE_PFN] = STORE_GFN
    domain.hvm_params[HvmParam.STORE_EVTCHN] = port
    domain.grants.give(RESERVED_STORE, BACKEND_DOMID, STORE_GFN)
    return domain.memory.shared(STORE_GFN * PAGE_BYTES, PAGE_BYTES)


def load(domain: Domain, image: ElfImage, command_line: str, modules: list[pvh.Module], sites: list[Site]) -> None:
    """Put an image into its memory, and its first vCPU at the entry.  ImageError."""
    flags = pvh.INITIAL_DOMAIN_FLAGS if domain.shape.initial else 0
    entry = pvh.load(domain.memory, image, command_line, modules, acpi.RSDP_ADDRESS, flags)
    for site in sites:
        domain.memory.write(site.gpa, patch_for(site.instruction))
    domain.vcpus[0].enter(flat(entry.eip, entry.ebx))


def _uuid_text(handle: bytes) -> str:
    digits = handle.hex()
    return "-".join(digits[start:end] for start, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
