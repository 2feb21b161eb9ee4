"""The 9P2000.L server of a share: diod, one process a connected guest."""

import os
import shutil
from pathlib import Path

from vmm.devices.helper import Helper
from vmm.errors import PyvmmError

BUFFER_BYTES = 1 << 20


def find_server() -> str:
    """Its program.  PyvmmError."""
    found = shutil.which("diod") or shutil.which("diod", path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise PyvmmError("--share needs the 9P server diod, which this host has not; install it (Debian: diod)")
    return found


def start_server(path: Path, *, read_only: bool) -> Helper:
    """Serve a folder to whoever has the stream.  PyvmmError, OSError."""
    options = ["--export-opts", "ro"] if read_only else []
    if os.getuid():
        options.append("--allsquash")
    return Helper(
        "diod",
        lambda fd: [
            find_server(), "--foreground", "--no-auth", "--no-userdb", "--config-file", "/dev/null", "--export", str(path),
            "--logdest", "stderr", "--rfdno", fd, "--wfdno", fd, *options,
        ],
        BUFFER_BYTES,
    )  # fmt: skip
