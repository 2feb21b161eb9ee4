"""A program of the host's that does part of a device's work, at the other end of a stream socket."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence

END_S = 1


class Helper:
    """A running program and the non-blocking stream to it; `close` ends it."""

    def __init__(
        self, name: str, command: Callable[[str], list[str]], buffer_bytes: int, files: Sequence[int] = ()
    ) -> None:
        """`command` makes its command line, given the number of its end of the stream.  It has `files` open.  OSError."""
        self._name = name
        self.socket, theirs = socket.socketpair()
        self._words = os.memfd_create(f"{name}-stderr", os.MFD_CLOEXEC)
        for end in (self.socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        # A session of its own, so that Ctrl-C at the terminal is for pyvmm alone.
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command(str(theirs.fileno())), pass_fds=[theirs.fileno(), *files], stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=self._words, start_new_session=True,
                )  # fmt: skip
        except OSError:
            self.socket.close()
            os.close(self._words)
            raise
        self.socket.setblocking(False)

    def how_it_ended(self) -> str:
        """What there is to say once the stream has ended."""
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return f"{self._name} has hung up"
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        words = os.pread(self._words, os.fstat(self._words).st_size, 0).decode(errors="replace").splitlines()
        # passt tells of each message, too, that there is no syslog to take it.
        last = [word.strip() for word in words if word.strip() and not word.startswith("Failed to send")][-1:]
        return f"{self._name} has ended with {': '.join([how, *last])}"

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self._process.kill()
        self._process.wait()
        os.close(self._words)
