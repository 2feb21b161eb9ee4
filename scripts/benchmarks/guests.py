"""The micro-guests that benchmarks run: assembling them, waiting for them, reading what they print."""

import subprocess
import time
from pathlib import Path

from scripts.benchmarks.counted import HEX_LINE
from tests.guests import Transcript
from vmm.machine.domain import Domain

MICRO = Path(__file__).resolve().parents[2] / "tests/micro"
STARTS_S = 60
FLAGS = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments"]


def assemble(name: str, folder: Path) -> Path:
    """The image of `tests/micro/NAME.S`, made in `folder` once."""
    image = folder / name
    if not image.exists():
        command = ["gcc", *FLAGS, "-T", str(MICRO / "guest.ld"), "-o", str(image), str(MICRO / f"{name}.S")]
        subprocess.run(command, check=True, capture_output=True)
    return image


def until_said(text: str, domain: Domain, transcript: Transcript) -> None:
    """Wait until a guest has printed something; SystemExit where it does not."""
    deadline = time.monotonic() + STARTS_S
    while text not in transcript.text:
        if domain.outcome is not None or time.monotonic() > deadline:
            raise SystemExit(f"the guest did not say {text!r}: {transcript.text}")
        time.sleep(0.01)


def printed_us(transcript: Transcript, khz: int) -> list[float]:
    """Microseconds from the TSC cycles that a guest prints, a line each, once it has ended well; SystemExit."""
    if "PASS" not in transcript.text:
        raise SystemExit(f"the guest did not come to its end: {transcript.text}")
    return [int(line, 16) / khz * 1e3 for line in HEX_LINE.findall(transcript.text)]
