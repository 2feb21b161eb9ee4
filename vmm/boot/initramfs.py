"""A small initramfs: busybox and one script as the first process."""

from pathlib import Path

from vmm.boot.cpio import CpioWriter
from vmm.boot.errors import ImageError

BUSYBOX_PLACES = (Path("/bin/busybox"), Path("/usr/bin/busybox"))

PROLOGUE = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
"""


def find_busybox() -> Path:
    """The host's busybox; ImageError where it has none."""
    for place in BUSYBOX_PLACES:
        if place.exists():
            return place
    raise ImageError("a guest without an initrd needs busybox on the host; install it (Debian: busybox-static)")


def busybox_initramfs(script: str) -> bytes:
    """An archive whose /init mounts /proc, /sys and /dev and then does what `script` (for busybox's sh) says."""
    archive = CpioWriter()
    for place in ("bin", "sbin", "dev", "proc", "sys", "root", "tmp", "etc"):
        archive.folder(place)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", find_busybox().read_bytes(), 0o755)
    for name in ("sh", "mount"):
        archive.symlink(f"bin/{name}", "busybox")
    install = "/bin/busybox --install -s /bin\nexport PATH=/bin:/sbin HOME=/root\n"
    archive.file("init", (PROLOGUE + install + script).encode(), 0o755)
    return archive.finish()
