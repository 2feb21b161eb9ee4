"""Running `pyvmm` as a user types it."""

import subprocess
import sys


def pyvmm(*arguments: object, timeout_s: float = 120, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(_command(arguments), input=typed, capture_output=True, text=True, timeout=timeout_s, check=False)


def started(*arguments: object, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """The same, still running, with its output in pipes."""
    return subprocess.Popen(_command(arguments), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-c", "import sys; from vmm.cli.main import main; sys.exit(main())", *map(str, arguments)]


def one_sentence(done: subprocess.CompletedProcess[str], status: int, reason: str) -> None:
    """It failed with this status and one line that holds this reason."""
    assert done.returncode == status, done.stderr
    assert reason in done.stderr
    assert done.stderr.startswith("pyvmm: ")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
