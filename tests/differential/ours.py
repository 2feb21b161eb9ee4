"""pyvmm carries out programs, one guest after another."""

import subprocess
from pathlib import Path

from tests.differential.programs import MEMORY_MIB
from tests.guests import run
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig, parse_xen_version

HERE = Path(__file__).parent
MICRO = HERE.parent / "micro"
GUEST_S = 600


def build_guest(folder: Path) -> Path:
    """The guest's image."""
    image = folder / "guest"
    flags = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments"]
    command = ["gcc", *flags, "-I", str(MICRO), "-T", str(MICRO / "guest.ld"), "-o", str(image), str(HERE / "guest.S")]
    subprocess.run(command, check=True)
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
