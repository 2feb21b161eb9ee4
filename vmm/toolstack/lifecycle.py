"""What a toolstack asks of a running domain from outside: through xenstore, as libxl does, or by the power button."""

from vmm.errors import PyvmmError, UsageError
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.transport import Transport
from vmm.xenstore.layout import ask_for

MIN_TARGET_BYTES = 16 << 20


def ask(hypervisor: Hypervisor, domain: Domain, action: str) -> bool:
    """Ask the guest's kernel for `poweroff` or `reboot`; False where it does not listen.

    As `xl` does, or by the power button of a dom0 whose xenstore is its own.
    """
    if domain.served:
        return hypervisor.xenstore.run(lambda store: ask_for(store, domain.domid, action))
    power = domain.board.power
    return action == "poweroff" and power is not None and power.press_power_button()


def ask_or_refuse(hypervisor: Hypervisor, domain: Domain, action: str) -> None:
    """Ask the guest's kernel for `poweroff` or `reboot`; PyvmmError where it does not listen."""
    if not ask(hypervisor, domain, action):
        raise PyvmmError(f"the guest's kernel does not listen for {action}; `pyvmm destroy` stops it at once")


def write(hypervisor: Hypervisor, domain: Domain, key: str, value: str) -> None:
    """Write a key of a domain's home in xenstore.  UsageError where its xenstore is not pyvmm's."""
    if not domain.served:
        raise UsageError(
            "this guest's xenstore is served by xenstored in dom0, so that is for dom0's own tools to do "
            "(run --xenstore internal)"
        )
    hypervisor.xenstore.run(lambda store: store.write(f"/local/domain/{domain.domid}/{key}", value))


def press_sysrq(hypervisor: Hypervisor, domain: Domain, key: str) -> None:
    """Send the guest's kernel a SysRq key.  UsageError."""
    if len(key) != 1 or not key.isascii() or not key.isalnum():
        raise UsageError(f"a SysRq key is one letter or digit, not {key!r}")
    write(hypervisor, domain, "control/sysrq", key)


def set_memory(hypervisor: Hypervisor, domain: Domain, size_bytes: int) -> None:
    """Have the guest balloon to so much RAM.  UsageError."""
    most = domain.shape.memory_bytes
    if not MIN_TARGET_BYTES <= size_bytes <= most:
        raise UsageError(f"the guest can have {MIN_TARGET_BYTES >> 20}M to {most >> 20}M, not {size_bytes >> 20}M")
    write(hypervisor, domain, "memory/target", str(size_bytes >> 10))


def set_vcpus(hypervisor: Hypervisor, domain: Domain, count: int) -> None:
    """Plug the guest's vCPUs in or out.  UsageError."""
    if not 1 <= count <= len(domain.vcpus):
        raise UsageError(f"the guest can have 1 to {len(domain.vcpus)} vCPUs (run --max-vcpus), not {count}")
    for index in range(len(domain.vcpus)):
        write(hypervisor, domain, f"cpu/{index}/availability", "online" if index < count else "offline")


def why_no_hypercalls(domain: Domain, *, kvm_xen: bool = True) -> str | None:
    """A sentence where the guest never made a hypercall though it could have been one of Xen's; None after a crash, which
    says more.  `kvm_xen`: it was not told to do without KVM_XEN.
    """
    if domain.ended_by is ShutdownReason.crash or domain.account.hypercalls or domain.transport is not Transport.PAGE:
        return None
    if domain.account.page_asked:
        return "the guest asked for the hypercall page but never called into it"
    return (
        "the guest never asked for the hypercall page and has no vmcall that could be patched, so none of its "
        "hypercalls can have reached pyvmm; "
        + ("a host whose KVM has KVM_XEN needs neither" if kvm_xen else "without --no-kvm-xen it might need neither")
    )
