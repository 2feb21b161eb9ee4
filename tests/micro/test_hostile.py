"""Front ends that do whatever a seed makes them do, in guests that run: nobody else is harmed, and pyvmm has no fault."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.guests import Transcript
from vmm.boot.image import load_image
from vmm.config.domain import DomainConfig
from vmm.devices.block.spec import parse_disk
from vmm.devices.net.spec import parse_net
from vmm.kvm import System
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.transport import Transport

Build = Callable[[str], Path]
GO = 0x310000
SEEDS = range(8)
WAIT_S = 60
Found = TypeVar("Found")
VBD = {"ring-ref": "8", "event-channel": "{first}", "protocol": "x86_64-abi"}
FRONT_ENDS = {
    "vbd": ("vbd/51712", VBD | {"feature-persistent": "0"}, "3"),
    "vbd, persistent": ("vbd/51712", VBD | {"feature-persistent": "1"}, "3"),
    "vbd, two ring pages": (
        "vbd/51712",
        {"ring-ref0": "8", "ring-ref1": "9", "ring-page-order": "1", "event-channel": "{first}", "protocol": "x86_32-abi"},
        "3",
    ),
    "vif": (
        "vif/0",
        {
            "tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel-tx": "{first}", "event-channel-rx": "{second}",
            "request-rx-copy": "1", "feature-rx-notify": "1", "feature-sg": "1", "feature-gso-tcpv4": "1",
        },
        "4",
    ),
}  # fmt: skip


def _can_make_taps() -> bool:
    return os.geteuid() == 0 and Path("/dev/net/tun").exists()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_a_hostile_front_end_harms_nobody(
    system: System, build: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, seed: int
) -> None:
    device, nodes, state = FRONT_ENDS[kind]
    if kind == "vif" and not _can_make_taps():
        pytest.skip("a tap device needs root and /dev/net/tun")
    content = os.urandom(1 << 20)
    (tmp_path / "disk").write_bytes(content)
    (tmp_path / "neighbours").write_bytes(content)
    hypervisor, transcript = Hypervisor(system), Transcript()
    image = build("hostile")
    config = DomainConfig(image, command_line=f"{kind[:3]}.{seed:04}", transport=Transport.PAGE)
    mine = (parse_net("tap"),) if kind == "vif" else (parse_disk(f"{tmp_path}/disk", "xvda"),)
    neighbour = config._replace(name="neighbour", devices=(parse_disk(f"{tmp_path}/neighbours", "xvda"),))
    try:
        domain = build_domain(hypervisor, config._replace(devices=mine).checked(), load_image(image), [], transcript)
        other = build_domain(hypervisor, neighbour.checked(), load_image(image), [], Transcript())
        other.unpause()
        domain.unpause()
        found = _until(lambda: re.search(r"^(\w{16})\n(\w{16})\nready", transcript.text, re.MULTILINE))
        assert found, transcript.text
        ports = {"first": int(found[1], 16), "second": int(found[2], 16)}
        home = f"/local/domain/{domain.domid}/device/{device}"

        def connect(store) -> None:  # type: ignore[no-untyped-def]
            for key, value in {**nodes, "state": state}.items():
                store.write(f"{home}/{key}", value.format(**ports))

        hypervisor.xenstore.run(connect)
        back = f"/local/domain/0/backend/{device.replace('/', f'/{domain.domid}/')}/state"
        assert _until(lambda: hypervisor.xenstore.run(lambda store: store.read(back)) == b"4")
        domain.memory.write(GO, b"\1\0\0\0")
        outcome = domain.wait(WAIT_S)
        assert outcome is not None, transcript.text
        assert (outcome.reason, "PASS" in transcript.text) == (ShutdownReason.poweroff, True), transcript.text
        domain.stop()
        assert domain.grants.in_use() == []
        assert other.outcome is None
        assert hypervisor.xenstore.run(lambda store: store.read(f"/local/domain/{other.domid}/name")) == b"neighbour"
    finally:
        hypervisor.close()
    assert (tmp_path / "neighbours").read_bytes() == content
    said = capfd.readouterr().err
    assert "callback failed" not in said, said
    assert "fault in pyvmm" not in said, said


def _until(wanted: Callable[[], Found]) -> Found:
    deadline = time.monotonic() + WAIT_S
    while not (found := wanted()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
