"""A guest that runs in a process of its own, with a shell on its console, and the commands that reach it."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.commands import started
from vmm.control.client import Control

TIMEOUT_S = 90


class Session:
    """The process and its console.  `run` a command in the guest, `ask` its process for something."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self.name = name
        self.process = process
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._at = 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        while part := self.process.stdout.read(1):
            self._said.append(part)

    @property
    def text(self) -> str:
        """All that the guest has printed."""
        return "".join(self._said)

    def expect(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """Wait until the console shows it, behind what was expected before."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.text
            if match := re.compile(pattern, re.S).search(text, self._at):
                self._at = match.end()
                return match
            assert time.monotonic() < deadline, f"no {pattern!r} in: {text[self._at :][-3000:]}"
            assert self.process.poll() is None or self._reader.is_alive(), f"ended: {text[-3000:]}"
            time.sleep(0.02)

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def run(self, command: str, timeout_s: float = TIMEOUT_S) -> str:
        """What a shell command prints; it has to succeed."""
        self.type(f"{command}; echo \"<\"'<'$?'>'\n")
        found = self.expect(r"(.*?)<<(\d+)>\r?\n", timeout_s)
        assert found[2] == "0", f"{command}: {found[0]}"
        return found[1].replace("\r", "")

    def ask(self, what: str, **words: object) -> Any:
        """A request to its control socket."""
        with Control(self.name) as control:
            return control.ask(what, **words)


@contextmanager
def session(kernel: Path, *options: object, name: str = "tested", quiet: bool = True) -> Iterator[Session]:
    """A guest with the shell of the default initrd; killed at the end, if it has not ended."""
    words = ["--append", "quiet loglevel=4"] if quiet else []
    command = ("run", kernel, "--name", name, "--timeout", TIMEOUT_S * 4, *words, *options)
    with started(*command, stdin=subprocess.PIPE) as process:
        made = Session(name, process)
        try:
            yield made
        finally:
            process.kill()


def shell(guest: Session) -> None:
    """Wait for the shell's prompt, and have it echo nothing."""
    guest.expect("# ")
    guest.type("stty -echo; PS1=\n")
    guest.run("true")
