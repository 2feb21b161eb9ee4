"""Attaching and detaching: what the manager refuses, and what it keeps of a domain's devices."""

from pathlib import Path
from typing import Any

import pytest

from vmm.devices.kind import Bus
from vmm.devices.manager import DeviceManager
from vmm.errors import PyvmmError, UsageError


class Attached:
    """A device whose guest lets it go or not."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.gone = False
        self.in_use = False

    def detach(self, *, force: bool) -> bool:
        if self.in_use and not force:
            return False
        self.gone = True
        self.device.release()
        return True

    def counters(self) -> dict[str, int]:
        return {"moved": 1}


class AnyBus:
    """Takes every device."""

    kind = Bus.XENBUS

    def __init__(self) -> None:
        self.attached: list[Attached] = []

    def attach(self, device: Any) -> Attached:
        self.attached.append(Attached(device))
        return self.attached[-1]

    def close(self) -> None:
        for attached in self.attached:
            attached.detach(force=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_device_attached_twice_is_refused_and_the_first_one_stays(image: Path) -> None:
    bus = AnyBus()
    manager = DeviceManager(bus, vcpus=1)
    assert manager.attach_text("disk", f"{image},ro,name=xvdc") == "xvdc"
    with pytest.raises(UsageError, match="the guest has a disk xvdc already"):
        manager.attach_text("disk", f"{image},ro,name=xvdc")
    assert len(bus.attached) == 1
    assert manager.attach_text("disk", f"{image},ro") == "xvda", "another name is free"
    manager.close()


def test_a_device_in_use_is_not_taken_away_but_by_force(image: Path) -> None:
    bus = AnyBus()
    manager = DeviceManager(bus, vcpus=1)
    manager.attach_text("disk", f"{image},ro")
    bus.attached[0].in_use = True
    with pytest.raises(PyvmmError, match="the guest still uses its disk xvda and has not let it go; --force takes it away"):
        manager.detach("disk", "xvda")
    assert not bus.attached[0].gone
    manager.detach("disk", "xvda", force=True)
    assert bus.attached[0].gone
    with pytest.raises(UsageError, match="the guest has no disk xvda"):
        manager.detach("disk", "xvda")
    assert manager.counters() == {}
