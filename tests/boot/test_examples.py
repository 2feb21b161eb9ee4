"""The scripts in examples/ and the code in docs/, as their readers run them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900


def execute(*command: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip


def test_bisect_kernel_says_good_bad_and_skip(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    script, image = ROOT / "examples/bisect_kernel.py", kernel("6.1")
    good = execute(sys.executable, script, image, "uname -r")
    assert (good.returncode, good.stdout[:10]) == (0, "good: 6.1."), good.stderr
    assert execute(sys.executable, script, image, "false").returncode == 1
    broken = tmp_path / "vmlinux"
    broken.write_bytes(b"no kernel")
    assert execute(sys.executable, script, broken, "true").returncode == 125


def test_fuzz_frontend_finds_no_complaint(kernel: Callable[[str], Path]) -> None:
    done = execute(sys.executable, ROOT / "examples/fuzz_frontend.py", kernel("6.1"), 5, 3)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.fullmatch(r"5 rounds, \d+ hypercalls failed on purpose, no complaint\n", done.stdout)


def test_two_guests_reach_each_other(kernel: Callable[[str], Path]) -> None:
    done = execute(sys.executable, ROOT / "examples/two_guests.py", kernel("6.1"))
    assert done.returncode == 0, done.stderr
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in done.stdout


def test_the_ci_jobs_last_step_passes(kernel: Callable[[str], Path]) -> None:
    # It runs test_hypercalls.py, too.
    step = (ROOT / "examples/ci-job.yml").read_text().rpartition("      - name: Boot\n        run: |\n")[2]
    script = "".join(line.removeprefix("          ") for line in step.partition("        env:")[0].splitlines(True))
    assert "pyvmm run" in script and "pytest" in script
    done = execute("bash", "-euo", "pipefail", "-c", script, KERNEL=str(kernel("6.1")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


@pytest.mark.parametrize("name", ["scripting.md"])
def test_the_documents_code_runs(kernel: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.S | re.M)
    assert len(blocks) > 3
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks))
    done = execute(sys.executable, script, PYVMM_KERNEL=str(kernel("6.1")))
    assert done.returncode == 0, done.stderr
