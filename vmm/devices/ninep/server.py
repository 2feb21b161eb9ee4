"""The 9P2000.L server of a share: diod, one process a connected guest."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from vmm.errors import PyvmmError

BUFFER_BYTES = 1 << 20


def find_server() -> str:
    """Its program.  PyvmmError."""
    found = shutil.which("diod") or shutil.which("diod", path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise PyvmmError("--share needs the 9P server diod, which this host has not; install it (Debian: diod)")
    return found


class Server:
    """A running server and the stream to it."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """OSError where it cannot be started."""
        self.socket, theirs = socket.socketpair()
        for end in (self.socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        options = ["--export-opts", "ro"] if read_only else []
        if os.getuid():
            options.append("--allsquash")
        with theirs:
            number = str(theirs.fileno())
            self._process = subprocess.Popen(
                [find_server(), "--foreground", "--no-auth", "--no-userdb", "--config-file", "/dev/null", "--export",
                 str(path), "--logdest", "stderr", "--rfdno", number, "--wfdno", number, *options],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.socket.setblocking(False)

    def how_it_ended(self) -> str:
        """A sentence for when the stream has ended."""
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "the 9P server has hung up"
        return f"the 9P server has ended ({signal.Signals(-status).name if status < 0 else f'status {status}'})"

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self._process.kill()
        self._process.wait()
