"""What can be asked of a running guest, as its own process carries it out."""

import os
import time
from collections.abc import Callable
from typing import Any

from vmm.config.domain import parse_size
from vmm.control.server import Answer
from vmm.devices.bus.xenbus import Xenbus, XenbusDevice
from vmm.errors import PyvmmError, UsageError
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor

MIN_TARGET_BYTES = 16 << 20


class Actions:
    """The requests of the control socket, for the guest that `domain` names at the time."""

    def __init__(self, hypervisor: Hypervisor, domain: Callable[[], Domain], destroy: Callable[[], None]) -> None:
        self._hypervisor = hypervisor
        self._domain = domain
        self._destroy = destroy
        self._started = time.monotonic()

    def table(self) -> dict[str, Answer]:
        """The requests by name."""
        return {
            "status": self._status,
            "shutdown": lambda request: self._ask("poweroff"),
            "reboot": lambda request: self._ask("reboot"),
            "destroy": lambda request: self._destroy(),
            "sysrq": self._sysrq,
            "set-memory": self._set_memory,
            "set-vcpus": self._set_vcpus,
            "attach-disk": self._attach_disk,
            "detach-disk": self._detach_disk,
            "attach-net": self._attach_net,
            "detach-net": self._detach_net,
        }

    def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        domain = self._domain()
        return {
            "name": domain.config.name,
            "pid": os.getpid(),
            "domid": domain.domid,
            "memory_mib": domain.memory.pages >> 8,
            "vcpus": sum(vcpu.online for vcpu in domain.vcpus),
            "seconds": round(time.monotonic() - self._started, 1),
            "image": str(domain.config.image),
        }

    def _ask(self, action: str) -> None:
        if not self._hypervisor.ask(self._domain(), action):
            raise PyvmmError(f"the guest's kernel does not listen for {action}; `pyvmm destroy` stops it at once")

    def _sysrq(self, request: dict[str, Any]) -> None:
        key = _text(request, "key")
        if len(key) != 1 or not key.isascii() or not key.isalnum():
            raise UsageError(f"a SysRq key is one letter or digit, not {key!r}")
        self._hypervisor.write(self._domain(), "control/sysrq", key)

    def _set_memory(self, request: dict[str, Any]) -> None:
        domain, size = self._domain(), parse_size(_text(request, "size"))
        most = domain.config.memory_bytes
        if not MIN_TARGET_BYTES <= size <= most:
            raise UsageError(f"the guest can have {MIN_TARGET_BYTES >> 20}M to {most >> 20}M, not {size >> 20}M")
        self._hypervisor.write(domain, "memory/target", str(size >> 10))

    def _set_vcpus(self, request: dict[str, Any]) -> None:
        domain, wanted = self._domain(), request.get("count")
        if not isinstance(wanted, int) or not 1 <= wanted <= len(domain.vcpus):
            raise UsageError(f"the guest can have 1 to {len(domain.vcpus)} vCPUs (run --max-vcpus), not {wanted}")
        for index in range(len(domain.vcpus)):
            self._hypervisor.write(domain, f"cpu/{index}/availability", "online" if index < wanted else "offline")

    def _attach_disk(self, request: dict[str, Any]) -> str:
        from vmm.devices.block.backend import open_disk
        from vmm.devices.block.spec import device_name, device_number, parse_disk

        domain = self._domain()
        free = next(name for name in map(device_name, range(702)) if self._find("vbd", device_number(name)) is None)
        disk = parse_disk(_text(request, "spec"), free)
        if self._find("vbd", disk.number) is not None:
            raise UsageError(f"the guest has a disk {disk.name} already")
        self._bus.attach(open_disk(disk, domain.config.possible_vcpus))
        return disk.name

    def _detach_disk(self, request: dict[str, Any]) -> None:
        from vmm.devices.block.spec import device_number

        name = _text(request, "name")
        self._detach(self._find("vbd", device_number(name)), f"disk {name}", force=bool(request.get("force")))

    def _attach_net(self, request: dict[str, Any]) -> int:
        from vmm.devices.net.backend import open_net
        from vmm.devices.net.spec import parse_net

        free = next(handle for handle in range(256) if self._find("vif", handle) is None)
        self._bus.attach(open_net(parse_net(_text(request, "spec")), free, self._domain().config.possible_vcpus))
        return free

    def _detach_net(self, request: dict[str, Any]) -> None:
        handle = request.get("number")
        found = self._find("vif", handle) if isinstance(handle, int) else None
        self._detach(found, f"network card {handle}", force=bool(request.get("force")))

    @property
    def _bus(self) -> Xenbus:
        bus = self._domain().bus
        if bus is None:
            raise UsageError("a dom0's disks and network cards are there from its start to its end")
        return bus

    def _find(self, kind: str, handle: int) -> XenbusDevice | None:
        return self._bus.find(kind, handle)

    def _detach(self, device: XenbusDevice | None, what: str, *, force: bool) -> None:
        if device is None:
            raise UsageError(f"the guest has no {what}")
        if not self._bus.detach(device, force=force):
            raise PyvmmError(f"the guest still uses its {what} and has not let it go; --force takes it away all the same")


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise UsageError(f"the request lacks {key!r}")
    return value
