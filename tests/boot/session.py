"""A guest that runs in a process of its own, with a shell on its console, and the commands that reach it."""

import os
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

TIMEOUT_S = 120


class Session:
    """The process and its console.  `run` a command in the guest, `ask` its process for something."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self.name = name
        self.process = process
        self.text = ""
        """All that the guest has printed."""
        self._ended = False
        self._more = threading.Condition()
        self._at = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while not self._ended:
            part = os.read(self.process.stdout.fileno(), 4096)
            with self._more:
                self.text += part.decode(errors="replace")
                self._ended = not part
                self._more.notify()

    def expect(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """Wait until the console shows it, behind what was expected before."""
        wanted = re.compile(pattern, re.S)
        with self._more:
            self._more.wait_for(lambda: wanted.search(self.text, self._at) or self._ended, timeout_s)
            match = wanted.search(self.text, self._at)
            assert match, f"no {pattern!r} in: {self.text[self._at :][-3000:]}"
            self._at = match.end()
            return match

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def run(self, command: str, timeout_s: float = TIMEOUT_S) -> str:
        """What a shell command prints; it has to succeed."""
        self.type(f"{command}; echo \"<\"'<'$?'>'\n")
        begun = time.monotonic()
        found = self.expect(r"(.*?)<<(\d+)>\r?\n", timeout_s)
        print(f"{time.monotonic() - begun:6.1f} s: {command}")
        assert found[2] == "0", f"{command}: {found[0]}"
        return found[1].replace("\r", "")

    def ask(self, what: str, **words: object) -> Any:
        """A request to its control socket."""
        with Control(self.name) as control:
            return control.ask(what, **words)


@contextmanager
def session(kernel: Path, *options: object, name: str = "tested", append: str = "") -> Iterator[Session]:
    """A guest with the shell of the default initrd; killed at the end, if it has not ended."""
    words = f"quiet loglevel=4 {append}".strip()
    command = ("run", kernel, "--name", name, "--timeout", TIMEOUT_S * 8, "--append", words, *options)
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
