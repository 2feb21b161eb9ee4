"""Assembling the micro-guests that benchmarks run."""

import subprocess
from pathlib import Path

MICRO = Path(__file__).resolve().parents[2] / "tests/micro"
FLAGS = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments"]


def assemble(name: str, folder: Path) -> Path:
    """The image of `tests/micro/NAME.S`, made in `folder` once."""
    image = folder / name
    if not image.exists():
        command = ["gcc", *FLAGS, "-T", str(MICRO / "guest.ld"), "-o", str(image), str(MICRO / f"{name}.S")]
        subprocess.run(command, check=True, capture_output=True)
    return image
