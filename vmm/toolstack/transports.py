"""How an image's hypercalls will leave the guest: the choice among the transports, on this host."""

from typing import NamedTuple

from vmm.boot.elf import ElfImage
from vmm.boot.hypercall_sites import Site, find_sites
from vmm.errors import HostError, PyvmmError
from vmm.kvm import System, XenFlag
from vmm.kvm.capabilities import msr_filter_available
from vmm.xenabi.transport import Transport


class HypercallPlan(NamedTuple):
    """The transport that an image gets on a host, and the instructions to patch for it."""

    transport: Transport
    sites: list[Site]


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
