"""pyvmm carries out programs, one guest after another."""

from pathlib import Path

from tests.differential.programs import MEMORY_MIB
from tests.guests import assemble, run
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig, parse_xen_version

GUEST_S = 600


def build_guest(folder: Path) -> Path:
    """The guest's image."""
    image = folder / "guest"
    assemble(Path(__file__).with_name("guest.S"), image)
    return image


class Ours:
    """pyvmm, here."""

    def __init__(self, image: Path, version: str = "4.17") -> None:
        self._image = image
        self._version = parse_xen_version(version)
        self.errors = ""

    def __str__(self) -> str:
        return "pyvmm"

    def run(self, module: bytes) -> str:
        """What a guest with these programs prints, until it ends."""
        config = DomainConfig(image=self._image, memory_bytes=MEMORY_MIB << 20, xen_version=self._version)
        ended = run(config, [Module("programs", memoryview(module))], GUEST_S)
        self.errors = str(ended.outcome)
        return ended.console
