"""The timeline's page of a real run, looked at in a real browser."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import one_sentence, pyvmm
from tests.micro.test_micro import Build

TIMEOUT_S = 90
BROWSER = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,1400"]


@pytest.fixture
def timeline(build: Build, tmp_path: Path) -> Path:
    file = tmp_path / "timeline.html"
    done = pyvmm("run", build("upcall"), "--timeline", file, "--timeout", TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    return file


def test_a_browser_draws_the_page(timeline: Path, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed (Debian: chromium); scripts/setup installs it where the tests are made for")
    if "svm" in Path("/proc/cpuinfo").read_text() and "QEMU TCG" in Path("/proc/cpuinfo").read_text():
        pytest.skip("a browser on an emulated CPU takes minutes; the same page is drawn on the host")
    environment = os.environ | {"HOME": str(tmp_path)}
    picture = tmp_path / "timeline.png"
    dump = subprocess.run(
        [*BROWSER, "--dump-dom", timeline.as_uri()], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
    )  # fmt: skip
    assert len(re.findall(r'<rect class="phase"', dump.stdout)) >= 4, dump.stderr
    assert "Hypercalls over time: 18" in dump.stdout
    subprocess.run(
        [*BROWSER, f"--screenshot={picture}", timeline.as_uri()], capture_output=True, timeout=TIMEOUT_S, env=environment
    )  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000  # more than an empty page
    if folder := os.environ.get("PYVMM_ARTEFACTS"):
        shutil.copy(picture, Path(folder) / "timeline.png")


def test_a_place_that_cannot_be_written_is_said_before_the_run(build: Build) -> None:
    one_sentence(pyvmm("run", build("hello"), "--timeline", "/absent/page"), 1, "--timeline /absent/page: No such file")
