"""A small initramfs: busybox and one script as the first process."""

from pathlib import Path
from typing import NamedTuple

from vmm.boot.cpio import CpioWriter
from vmm.boot.errors import ImageError
from vmm.boot.exit_program import exit_program

BUSYBOX_PLACES = (Path("/bin/busybox"), Path("/usr/bin/busybox"))

PROLOGUE = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/root TERM=linux
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
hostname pyvmm
ip link set lo up
"""

_SHELL = """
cd /root
setsid cttyhack sh
"""

# The command has no input, so that it cannot wait for what nobody types; `stty` waits until its output has been taken.
_COMMAND = """
cd /root
sh /command </dev/null
status=$?
stty sane
report-status $status
"""

_END = """
sync
poweroff -f
"""


# What the kernel calls when it is asked to shut down; busybox's own would ask an init that is not there.
_SHUTDOWN = "#!/bin/sh\nsync\nexec /bin/busybox {} -f\n"


class WindowSize(NamedTuple):
    """A terminal's size, characters."""

    rows: int
    columns: int


def find_busybox() -> Path:
    """The host's busybox; ImageError where it has none."""
    for place in BUSYBOX_PLACES:
        if place.exists():
            return place
    raise ImageError(
        "a guest without an initrd gets one made of the host's busybox, and there is none: install it (Debian: "
        "busybox-static), or give --initrd FILE or --no-initrd"
    )


def busybox_initramfs(script: str, files: dict[str, bytes] | None = None) -> bytes:
    """An archive whose /init mounts /proc, /sys, /dev and /tmp and then does what `script` (for busybox's sh) says.

    `files` are further executables, by path.
    """
    archive = CpioWriter()
    for place in ("bin", "sbin", "dev", "proc", "sys", "root", "tmp", "etc"):
        archive.folder(place)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", find_busybox().read_bytes(), 0o755)
    for name in ("sh", "mount"):
        archive.symlink(f"bin/{name}", "busybox")
    for name in ("poweroff", "reboot"):
        archive.file(f"sbin/{name}", _SHUTDOWN.format(name).encode(), 0o755)
    for path, content in (files or {}).items():
        archive.file(path, content, 0o755)
    archive.file("init", (PROLOGUE + script).encode(), 0o755)
    return archive.finish()


def shell_initramfs(window: WindowSize | None) -> bytes:
    """An initramfs with a shell on the console; its end powers the guest off."""
    size = f"stty rows {window.rows} cols {window.columns}\n" if window is not None else ""
    return busybox_initramfs(size + _SHELL + _END)


def command_initramfs(command: str, status_port: int, *, plain_newlines: bool) -> bytes:
    """An initramfs that runs a command, writes its exit status to an I/O port and powers off."""
    script = ("stty -opost\n" if plain_newlines else "") + _COMMAND + _END
    files = {"command": command.encode() + b"\n", "sbin/report-status": exit_program(status_port)}
    return busybox_initramfs(script, files)
