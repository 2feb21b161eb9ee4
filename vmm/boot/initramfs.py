"""A small initramfs: busybox and one script as the first process."""

import os
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from vmm.boot.agent import AGENT
from vmm.boot.cpio import CpioWriter
from vmm.boot.errors import ImageError
from vmm.boot.exit_program import exit_program

BUSYBOX_PLACES = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
BUSYBOX_VARIABLE = "PYVMM_BUSYBOX"
"""Names busyboxes to look at before those, with colons between them: one of 32 bits, say."""

PROLOGUE = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in $(cat /modules/order 2>/dev/null); do insmod "/modules/$module"; done
grep -qw xenfs /proc/filesystems && mount -t xenfs xenfs /proc/xen
export PATH=/sbin:/bin HOME=/root TERM=linux
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
hostname pyvmm
ip link set lo up
"""

_SHELL = """
cd /root
setsid cttyhack $inside /bin/sh
"""

# The command has no input, so that it cannot wait for what nobody types; `stty` waits until its output has been taken.
_COMMAND = """
cd /root
$inside /bin/sh -c "$(cat /command)" </dev/null
status=$?
stty sane
report-status $status
grep -qw 'quiet loglevel=1' /proc/cmdline && echo 0 >/proc/sys/kernel/printk  # "Power down" is for emergencies
"""

_END = """
sync
poweroff -f
"""

# The words of the command line that Linux itself heeds where there is no initramfs.
_ROOT = """
root= type= flags= mode=ro init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        rootfstype=*) type=${word#rootfstype=} ;;
        rootflags=*) flags=,${word#rootflags=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) mode=$word ;;
    esac
done
for try in $(seq 100); do
    case $root in *=*) found=$(findfs "$root" 2>/dev/null) ;; *) found=$root ;; esac
    [ -e "$found" ] || [ "$type" = 9p ] && break
    usleep 100000
done
mkdir /newroot
if ! mount -o "$mode$flags" ${type:+-t "$type"} "$found" /newroot; then
    echo "cannot mount $root as the root file system; these block devices are there:"
    cat /proc/partitions
    poweroff -f
fi
"""

_SWITCH_ROOT = """
umount /dev/pts /tmp
for place in /proc /sys /dev; do mount -o move "$place" "/newroot$place" || umount -l "$place"; done
exec switch_root /newroot "$init"
"""

_STAY_INSIDE = """
for place in /proc /sys /dev; do mount --rbind "$place" "/newroot$place"; done
mount -t devpts devpts /newroot/dev/pts
for place in /tmp /run /root; do mount -t tmpfs tmpfs "/newroot$place"; done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
inside="chroot /newroot"
"""


# What the kernel calls when it is asked to shut down; busybox's own would ask an init that is not there.
_SHUTDOWN = "#!/bin/sh\nsync\nexec /bin/busybox {} -f\n"


class WindowSize(NamedTuple):
    """A terminal's size, characters."""

    rows: int
    columns: int


def find_busybox(bits: int = 64) -> Path:
    """A busybox for a kernel of 32 or 64 bits; ImageError where this host has none."""
    named = [Path(place) for place in os.environ.get(BUSYBOX_VARIABLE, "").split(":") if place]
    for place in (*named, *BUSYBOX_PLACES):
        if place.is_file() and _bits_of(place) == bits:
            return place
    if bits == 32:
        raise ImageError(
            "a 32-bit kernel without an initrd gets one made of a 32-bit busybox, and there is none: unpack Debian's "
            f"busybox-static:i386 and name its program in {BUSYBOX_VARIABLE}, or give --initrd FILE or --no-initrd"
        )
    raise ImageError(
        "a guest without an initrd gets one made of the host's busybox, and there is none: install it (Debian: "
        "busybox-static), or give --initrd FILE or --no-initrd"
    )


def _bits_of(program: Path) -> int:
    """Of an ELF file; 0 for any other."""
    with program.open("rb") as handle:
        return {b"\x7fELF\1": 32, b"\x7fELF\2": 64}.get(handle.read(5), 0)


DHCP = """
cat >/bin/dhcp-event <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
for gateway in $router; do ip route add default via "$gateway" dev "$interface"; done
for server in $dns; do echo "nameserver $server"; done >>/etc/resolv.conf
END
chmod +x /bin/dhcp-event
"""
"""What `dhcp_script` needs once."""


def dhcp_script(cards: list[str]) -> str:
    """Lines for the script that bring network cards up and ask for their addresses."""
    lines = [
        f"ip link set {card} up; udhcpc -q -n -t 5 -T 1 -i {card} -s /bin/dhcp-event >/dev/null 2>&1\n" for card in cards
    ]
    return "".join([DHCP, *lines]) if lines else ""


Modules = list[tuple[str, bytes]]
"""File name and content of kernel modules, in the order in which they are to be loaded."""


class Root(Enum):
    """What the initramfs does with the file system that the command line's root= names."""

    NONE = ""
    SWITCH = _ROOT + _SWITCH_ROOT
    """Its own init goes on."""
    STAY = _ROOT + _STAY_INSIDE
    """A shell or a command is run in it, and its end is the guest's."""


def busybox_initramfs(
    script: str, files: dict[str, bytes] | None = None, modules: Modules | None = None, bits: int = 64
) -> bytes:
    """An archive whose /init mounts /proc, /sys, /dev and /tmp, loads the modules, and then does what `script` says.

    `script` is for busybox's sh; `files` are further executables, by path; `bits` are the kernel's.
    """
    archive = CpioWriter()
    for place in ("bin", "sbin", "dev", "proc", "sys", "root", "tmp", "etc", "mnt", "modules"):
        archive.folder(place)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", find_busybox(bits).read_bytes(), 0o755)
    for name in ("sh", "mount"):
        archive.symlink(f"bin/{name}", "busybox")
    for name in ("poweroff", "reboot"):
        archive.file(f"sbin/{name}", _SHUTDOWN.format(name).encode(), 0o755)
    for path, content in (files or {}).items():
        archive.file(path, content, 0o755)
    for name, content in modules or []:
        archive.file(f"modules/{name}", content)
    archive.file("modules/order", "".join(f"{name}\n" for name, _ in modules or []).encode())
    archive.file("init", (PROLOGUE + script).encode(), 0o755)
    return archive.finish()


def shell_initramfs(
    window: WindowSize | None, root: Root, modules: Modules, network: str, bits: int, *, agent: bool
) -> bytes:
    """An initramfs with a shell on the console, whose end powers the guest off, or one that goes on to a root.

    With an agent that answers requests on the guest's first channel, too (`vmm.boot.agent`).
    """
    size = f"stty rows {window.rows} cols {window.columns}\n" if window is not None else ""
    files = {"sbin/agent": AGENT.encode()} if agent else {}
    start_agent = '\ninside="$inside" /sbin/agent &\n' if agent else ""
    return busybox_initramfs(size + network + root.value + start_agent + _SHELL + _END, files, modules, bits)


def command_initramfs(
    command: str, status_port: int, *, plain_newlines: bool, root: Root, modules: Modules, network: str, bits: int
) -> bytes:
    """An initramfs that runs a command, writes its exit status to an I/O port and powers off."""
    script = ("stty -opost\n" if plain_newlines else "") + network + root.value + _COMMAND + _END
    files = {"command": command.encode() + b"\n", "sbin/report-status": exit_program(status_port, bits)}
    return busybox_initramfs(script, files, modules, bits)
