"""Hypervisor: the domains of one process by domid, and what they share."""

import os
import threading

from vmm.config.shape import Shape
from vmm.errors import PyvmmError
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.xenabi.constants import DOMID_FIRST_RESERVED, PAGE_BYTES, Virq
from vmm.xenabi.hypervisor_log import HypervisorLog
from vmm.xenabi.state import DomainState
from vmm.xenabi.transport import Transport
from vmm.xenabi.values import Domid, HostFacts, VcpuId
from vmm.xenstore.server import Store
from vmm.xenstore.service import Xenstore
from vmm.xenstore.wire import Message


class Hypervisor:
    """Domains by domid, all in this process.  `_lock` guards the table; the methods may be called from any thread."""

    def __init__(self, system: System) -> None:
        system.require()
        self.system = system
        self.xenstore = Xenstore()
        """pyvmm's own, for every domain that no other serves."""
        self.log = HypervisorLog()
        self._lock = threading.Lock()
        self._domains: dict[Domid, Domain] = {}
        self._next_domid = 1
        self.highest_page = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PAGE_BYTES - 1

    # ------------------------------------------------------------------------------------- domains

    def create(self, shape: Shape, transport: Transport) -> Domain:
        """A domain with a domid, limits and flags: paused, with nothing in it.  PyvmmError."""
        domid = self._new_domid(initial=shape.initial)
        domain = Domain(self.system, self, domid, shape, transport)
        with self._lock:
            self._domains[domid] = domain
        return domain

    def destroy(self, domain: Domain) -> None:
        """Stop and release one domain; its domid is not used again."""
        with self._lock:
            self._domains.pop(domain.domid, None)  # before it is taken down: nobody finds it any more
        domain.stop()
        self.xenstore.release(domain.domid)
        domain.close()

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

    def close(self) -> None:
        """Destroy every domain."""
        for domain in self.domains():
            self.destroy(domain)
        self.xenstore.close()

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

    def rehooked(self) -> None:
        """The hooks of a domain have changed: xenstore calls those that there are now, a hook of several domains once.

        A domain's hooks are shown its own messages, and those that a toolstack sends as domain 0.
        """
        hooks = {(domain.domid, hook) for domain in self.domains() for hook in domain.hooks.store_hooks()}

        def call(domid: Domid, request: Message, answer: Message) -> None:
            for hook in {hook for owner, hook in hooks if domid in (owner, 0)}:
                hook(domid, request, answer)

        def watch(store: Store) -> None:
            store.watcher = call if hooks else None

        self.xenstore.run(watch)
