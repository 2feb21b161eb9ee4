"""What a toolstack puts into xenstore for a domain, as libxl lays it out; the reference transcripts show the whole.

A node of dom0's that the guest reads is `n0,rN`; one that the guest writes is its own, `nN`.
"""

import time
from typing import NamedTuple

from vmm.xenabi.values import Domid, Gfn, Port
from vmm.xenstore.server import Store
from vmm.xenstore.tree import DOM0, Permission, Permissions, StoreError

CONSOLE_LIMIT_BYTES = 1 << 20
DOM0_FEATURES = ("poweroff", "reboot", "suspend")


class DomainFacts(NamedTuple):
    """What there is to say of a domain."""

    domid: Domid
    name: str
    uuid: str
    memory_kib: int
    vcpus: int
    possible_vcpus: int
    store_port: Port
    store_gfn: Gfn
    console_port: Port
    console_gfn: Gfn


def toolstacks(domid: Domid) -> Permissions:
    """Written by the toolstack, read by the guest."""
    return Permission(DOM0, False, False), Permission(domid, True, False)


def _guests(domid: Domid) -> Permissions:
    return (Permission(domid, False, False),)


def guests_device(domid: Domid) -> Permissions:
    """Written by the guest, read by dom0."""
    return Permission(domid, False, False), Permission(DOM0, True, False)


def describe_dom0(store: Store) -> None:
    """What is there before any domain."""
    for path in ("/tool", "/tool/xenstored", "/local", "/local/domain", "/libxl", "/vm"):
        store.write(path, "")
    store.write("/local/domain/0/domid", "0")
    store.write("/local/domain/0/name", "Domain-0")
    for feature in DOM0_FEATURES:
        store.write(f"/local/domain/0/control/feature-{feature}", "1")
    store.write("/local/pool/0/name", "Pool-0")


def describe_domain(store: Store, facts: DomainFacts) -> None:
    """Everything about a domain that has no devices yet but its console."""
    domid, home = facts.domid, f"/local/domain/{facts.domid}"
    backend = f"/local/domain/0/backend/console/{domid}/0"
    vm = f"/vm/{facts.uuid}"
    ours, theirs, own = toolstacks(domid), _guests(domid), guests_device(domid)
    console = {
        "frontend": f"{home}/console", "frontend-id": str(domid), "online": "1", "state": "1", "protocol": "vt100",
    }  # fmt: skip
    for path, value, permissions in (
        (vm, "", ours),
        (f"{vm}/name", facts.name, ours),
        (f"{vm}/uuid", facts.uuid, ours),
        (f"{vm}/start_time", f"{time.time():.2f}", ours),
        (home, "", ours),
        (f"{home}/vm", vm, ours),
        (f"{home}/name", facts.name, ours),
        (f"{home}/memory/static-max", str(facts.memory_kib), ours),
        (f"{home}/memory/target", str(facts.memory_kib), ours),
        (f"{home}/memory/videoram", "0", ours),
        (f"{home}/device", "", ours),
        (f"{home}/device/suspend/event-channel", "", theirs),
        (f"{home}/control", "", ours),
        (f"{home}/control/shutdown", "", theirs),
        (f"{home}/control/feature-poweroff", "", theirs),
        (f"{home}/control/feature-reboot", "", theirs),
        (f"{home}/control/feature-suspend", "", theirs),
        (f"{home}/control/sysrq", "", theirs),
        (f"{home}/control/platform-feature-multiprocessor-suspend", "1", ours),
        (f"{home}/control/platform-feature-xs_reset_watches", "1", ours),
        *((f"{home}/{name}", "", theirs) for name in ("data", "drivers", "feature", "attr", "error")),
        (f"{home}/domid", str(domid), ours),
        (f"{home}/store/port", str(facts.store_port), ours),
        (f"{home}/store/ring-ref", str(facts.store_gfn), ours),
        (f"{home}/console", "", ours),
        (f"{home}/console/backend", backend, ours),
        (f"{home}/console/backend-id", "0", own),
        (f"{home}/console/limit", str(CONSOLE_LIMIT_BYTES), ours),
        (f"{home}/console/type", "xenconsoled", ours),
        (f"{home}/console/output", "pty", ours),
        (f"{home}/console/tty", "", ours),
        (f"{home}/console/port", str(facts.console_port), ours),
        (f"{home}/console/ring-ref", str(facts.console_gfn), ours),
        (backend, "", ours),
        *((f"{backend}/{name}", value, ours) for name, value in console.items()),
        (f"/libxl/{domid}/device/console/0/backend", backend, None),
        *((f"/libxl/{domid}/device/console/0/{name}", value, None) for name, value in console.items()),
        *(
            (f"{home}/cpu/{vcpu}/availability", "online" if vcpu < facts.vcpus else "offline", ours)
            for vcpu in range(facts.possible_vcpus)
        ),
        (f"/libxl/{domid}/type", "pvh", None),
    ):
        store.write(path, value, permissions)


def ask_for(store: Store, domid: Domid, action: str) -> bool:
    """Ask a guest for `poweroff` or `reboot` through control/shutdown; False where it has not said that it listens."""
    control = f"/local/domain/{domid}/control"
    if store.read(f"{control}/feature-{action}") != b"1":
        return False
    store.write(f"{control}/shutdown", action)
    return True


def forget_domain(store: Store, domid: Domid) -> None:
    """Remove what `describe_domain` and the guest have put there."""
    vm = store.read(f"/local/domain/{domid}/vm")
    for path in (f"/local/domain/{domid}", f"/libxl/{domid}", *([vm.decode()] if vm else [])):
        store.remove(path)
    for kind in _children(store, "/local/domain/0/backend"):
        store.remove(f"/local/domain/0/backend/{kind}/{domid}")


def _children(store: Store, path: str) -> tuple[str, ...]:
    try:
        return store.tree.view().get(path, DOM0).children
    except StoreError:
        return ()
