"""The 9P2000.L server of a share: diod, one process a connected guest."""

import os
import shutil
from pathlib import Path

from vmm.errors import PyvmmError
from vmm.host.helper import Helper

BUFFER_BYTES = 1 << 20


def find_server() -> str:
    """Its program.  PyvmmError."""
    found = shutil.which("diod") or shutil.which("diod", path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise PyvmmError("--share needs the 9P server diod, which this host has not; install it (Debian: diod)")
    return found


def start_server(path: Path, *, read_only: bool) -> Helper:
    """Serve a folder to whoever has the stream.  PyvmmError, OSError."""
    # diod heeds `ro` in a file of its own form (Lua) alone, not among the options of its command line.
    quoted = "".join(f"\\{byte:03}" for byte in bytes(path))
    options = ', opts="ro"' if read_only else ""
    settings = os.memfd_create("diod.conf")
    try:
        os.write(settings, f'exports = {{ {{ path="{quoted}"{options} }} }}\n'.encode())
        place = f"/proc/self/fd/{settings}"
        squash = ["--allsquash"] if os.getuid() else []
        return Helper(
            "diod",
            lambda fd: [
                find_server(), "--foreground", "--no-auth", "--no-userdb", "--config-file", place, "--logdest", "stderr",
                "--rfdno", fd, "--wfdno", fd, *squash,
            ],
            BUFFER_BYTES,
            [settings],
        )  # fmt: skip
    finally:
        os.close(settings)
