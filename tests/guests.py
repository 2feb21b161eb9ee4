"""Running guests inside the test's own process: quick where Python starts slowly, and with their output in hand."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vmm.boot.image import load_image
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.machine.lifecycle import Outcome
from vmm.toolstack.build import build
from vmm.xenabi.values import Domid, Gfn, GrantRef

MICRO = Path(__file__).parent / "micro"


def assemble(source: Path, image: Path) -> None:
    """Make a micro-guest's image; `guest.inc` is there to be included."""
    flags = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments"]
    command = ["gcc", *flags, "-I", str(MICRO), "-T", str(MICRO / "guest.ld"), "-o", str(image), str(source)]
    subprocess.run(command, check=True, capture_output=True)


class Transcript:
    """A console sink that remembers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            self._parts.append(data)

    @property
    def text(self) -> str:
        with self._lock:
            return b"".join(self._parts).decode(errors="replace")


class Ended(NamedTuple):
    """A guest that has ended: what it printed, and how it ended (None where the test stopped it)."""

    console: str
    outcome: Outcome | None
    domain: Domain


SHARED_GFN, SHARED_PAGES, FIRST_SHARED_REF = Gfn(0x2000), 1024, 8


def share_pages(domain: Domain) -> None:
    """What the micro-guest `maps` maps as dom0: pages that begin with their number, the first half granted to it."""
    for number in range(FIRST_SHARED_REF, FIRST_SHARED_REF + SHARED_PAGES):
        gfn = Gfn(SHARED_GFN + number - FIRST_SHARED_REF)
        domain.memory.page(gfn)[:4] = number.to_bytes(4, "little")
        domain.grants.grow(2)
        if number < FIRST_SHARED_REF + SHARED_PAGES // 2:
            domain.grants.give(GrantRef(number), Domid(0), gfn)


@contextmanager
def running(config: DomainConfig, modules: list[Module] | None = None, **how: bool) -> Iterator[tuple[Domain, Transcript]]:
    """A started domain, built as `how` says; stopped and released at the end."""
    system = System()
    hypervisor = Hypervisor(system)
    transcript = Transcript()
    try:
        domain = build(hypervisor, config.checked(), load_image(config.image), modules or [], transcript, **how)
        domain.unpause()
        yield domain, transcript
    finally:
        hypervisor.close()
        system.close()


def run(config: DomainConfig, modules: list[Module] | None = None, timeout_s: float = 30) -> Ended:
    """Run a guest to its end, or for so long."""
    with running(config, modules) as (domain, transcript):
        outcome = domain.wait(timeout_s)
        domain.stop()
        return Ended(transcript.text, outcome, domain)
