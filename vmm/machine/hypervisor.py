"""Hypervisor: the domains of one process by domid, and the choice of how their hypercalls arrive."""

import threading
from typing import TYPE_CHECKING

from vmm.boot.elf import ElfImage
from vmm.boot.hypercall_sites import Site, find_sites
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig
from vmm.errors import HostError, PyvmmError, UsageError
from vmm.host.chardev import Sink
from vmm.kvm import System, XenFlag
from vmm.kvm.capabilities import msr_filter_available
from vmm.machine.domain import Domain
from vmm.xenabi.constants import DOMID_FIRST_RESERVED, Virq
from vmm.xenabi.hypervisor_log import HypervisorLog
from vmm.xenabi.state import DomainState
from vmm.xenabi.transport import Transport
from vmm.xenabi.values import Domid, HostFacts, VcpuId
from vmm.xenstore.layout import ask_for
from vmm.xenstore.service import Xenstore

if TYPE_CHECKING:
    from vmm.machine.platform import Pc

MAX_QUEUES = 8
"""Of a virtio disk."""


class HypercallPlan:
    """The transport that an image gets on a host, and the instructions to patch for it."""

    def __init__(self, transport: Transport, sites: list[Site]) -> None:
        self.transport = transport
        self.sites = sites


def plan_hypercalls(system: System, image: ElfImage, wanted: Transport | None, *, kvm_xen: bool = True) -> HypercallPlan:
    """Choose a transport, or check the one that the user forces.  HostError, PyvmmError."""
    xen = kvm_xen and XenFlag.INTERCEPT_HCALL in system.xen_flags()
    filters = msr_filter_available(system)
    if wanted is Transport.KVM_XEN or (wanted is None and xen):
        if not xen:
            raise HostError("--transport kvm-xen needs a KVM with CONFIG_KVM_XEN, which this host's has not; use `auto`")
        return HypercallPlan(Transport.KVM_XEN, [])
    if wanted is Transport.PAGE:
        if not filters:
            raise HostError("--transport page needs KVM_CAP_X86_MSR_FILTER (Linux 5.10), which this host's KVM has not")
        return HypercallPlan(Transport.PAGE, [])
    sites = find_sites(image)
    if sites:
        return HypercallPlan(Transport.PATCH, sites)
    if wanted is Transport.PATCH:
        raise PyvmmError(
            f"--transport patch: {image.name} has no vmcall and vmmcall in the shape that can be patched; use `auto`"
        )
    if not filters:
        raise HostError(
            f"{image.name} needs a hypercall page, and this host's KVM has neither KVM_XEN nor KVM_CAP_X86_MSR_FILTER"
        )
    return HypercallPlan(Transport.PAGE, [])


class Hypervisor:
    """Domains by domid, all in this process.  `_lock` guards the table."""

    def __init__(self, system: System) -> None:
        system.require()
        self.system = system
        self.xenstore = Xenstore()
        self._lock = threading.Lock()
        self._domains: dict[Domid, Domain] = {}
        self.log = HypervisorLog()
        self._next_domid = 1

    def create_domain(
        self, config: DomainConfig, image: ElfImage, modules: list[Module], sink: Sink, serial: Sink | None = None
    ) -> Domain:
        """Build a domain, ready to start.  PyvmmError."""
        # KVM_XEN answers SCHEDOP_yield by itself, and SCHEDOP_poll as if it were that: nobody would see them.
        kvm_xen = config.kvm_xen and (not config.observed or config.transport is Transport.KVM_XEN)
        plan = plan_hypercalls(self.system, image, config.transport, kvm_xen=kvm_xen)
        domid = self._new_domid(initial=config.initial)
        domain = Domain(self.system, self, domid, config, plan.transport, sink, serial)
        try:
            initial = self.find(0)
            if initial is not None and initial.config.own_xenstore:
                domain.leave_store_to_dom0()
            elif not config.own_xenstore:
                domain.connect_store(self.xenstore)
            self._attach_devices(domain)
            domain.load(image, modules, plan.sites)
        except BaseException:
            self._release(domain)
            raise
        with self._lock:
            self._domains[domid] = domain
        self.log.note("*** Building a PVH Dom0 ***" if config.initial else f"d{domid}: made by pyvmm ({config.name})")
        return domain

    # --------------------------------------------------------------------- what hypercalls ask of it

    def find(self, domid: int) -> Domain | None:
        """The domain of that number."""
        return self._domains.get(Domid(domid))

    def domains(self) -> list[Domain]:
        """All of them, by domid."""
        with self._lock:
            return [self._domains[domid] for domid in sorted(self._domains)]

    def facts(self) -> HostFacts:
        """What the host says of itself now."""
        from vmm.machine.host_facts import gather  # only a dom0's tools ask

        vcpu = next((vcpu for domain in self.domains() for vcpu in domain.vcpus), None)
        return gather(self.system.supported_cpuid(), 0 if vcpu is None else vcpu.kvm.tsc_khz())

    def ended(self, domain: DomainState) -> None:
        """A domain runs no more: dom0 is told, and the log."""
        reason = domain.ended_by
        self.log.note(f"Domain {domain.domid} shut down: {'' if reason is None else reason.name}")
        initial = self.find(0)
        if initial is not None and initial is not domain:
            initial.events.send_virq(Virq.DOM_EXC, VcpuId(0))

    # ------------------------------------------------------------------------------------- domains

    def _new_domid(self, *, initial: bool) -> Domid:
        with self._lock:
            if initial:
                if 0 in self._domains:
                    raise PyvmmError("this hypervisor has its initial domain already")
                return Domid(0)
            if self._next_domid >= DOMID_FIRST_RESERVED:
                raise PyvmmError("this hypervisor has used up all of its domids")
            self._next_domid += 1
            return Domid(self._next_domid - 1)

    def _attach_devices(self, domain: Domain) -> None:
        if domain.pc is not None:
            self._plug_devices(domain.config, domain.pc)
            return
        if domain.bus is None:
            if domain.config.disks or domain.config.nets or domain.config.shares:
                raise UsageError(
                    f"{domain.config.name}: with its xenstore in dom0, a guest's disks, network cards and shares are for "
                    "dom0 to give; leave them out, or use --xenstore internal"
                )
            return
        for disk in domain.config.disks:
            from vmm.devices.block.backend import open_disk  # most guests have none

            domain.bus.attach(open_disk(disk, domain.config.possible_vcpus))
        for handle, net in enumerate(domain.config.nets):
            from vmm.devices.net.backend import open_net

            domain.bus.attach(open_net(net, handle, domain.config.possible_vcpus))
        for handle, share in enumerate(domain.config.shares):
            from vmm.devices.ninep.backend import ShareBackend

            domain.bus.attach(ShareBackend(share, handle))

    def _plug_devices(self, config: DomainConfig, pc: "Pc") -> None:
        for disk in config.disks:
            from vmm.devices.block.backend import open_image
            from vmm.devices.virtio.block import BlockDevice

            image = open_image(disk)
            queues = min(disk.queues or config.possible_vcpus, MAX_QUEUES)
            pc.plug(
                BlockDevice(disk.path.name, image, queues, image.close, discard=disk.discard, zeroes=image.discard_zeroes)
            )
        for net in config.nets:
            from vmm.devices.net.backend import open_network
            from vmm.devices.virtio.net import NetDevice

            pc.plug(NetDevice(net, open_network(net, queues=1)))

    def destroy_domain(self, domain: Domain) -> None:
        """Stop and release one domain; its domid is not used again."""
        with self._lock:
            self._domains.pop(domain.domid, None)
        self._release(domain)

    def ask(self, domain: Domain, action: str) -> bool:
        """Ask the guest's kernel for `poweroff` or `reboot`; False where it does not listen.

        As `xl` does, or by the power button of a dom0 whose xenstore is its own.
        """
        if not domain.config.own_xenstore:
            return self.xenstore.run(lambda store: ask_for(store, domain.domid, action))
        return action == "poweroff" and domain.power.press_power_button()

    def write(self, domain: Domain, key: str, value: str) -> None:
        """Write a key of a domain's home in xenstore, as a toolstack does.  UsageError where that is the domain's own."""
        if domain.config.own_xenstore:
            raise UsageError(
                "this dom0 runs xenstored itself, so that is for its own tools to do (run --xenstore internal)"
            )
        self.xenstore.run(lambda store: store.write(f"/local/domain/{domain.domid}/{key}", value))

    def _release(self, domain: Domain) -> None:
        domain.stop()
        self.xenstore.release(domain.domid)
        domain.close()

    def close(self) -> None:
        """Stop and release every domain."""
        with self._lock:
            domains, self._domains = list(self._domains.values()), {}
        for domain in domains:
            self._release(domain)
        self.xenstore.close()
