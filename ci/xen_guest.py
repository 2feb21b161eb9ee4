"""One PVH guest under real Xen, started as `pyvmm run` starts one: from its command line to a domain of xl's."""

import argparse
import shlex
from pathlib import Path

from debian import FetchError
from l1 import HERE

from vmm.boot.errors import ImageError
from vmm.boot.image import load_image
from vmm.boot.initramfs import busybox_initramfs
from vmm.boot.modules import ModuleFolder, module_folder
from vmm.toolstack.prepare import linux_command_line

NAME = "guest"
IN_DOM0 = Path("/run/nested")
"""Where dom0 has the job's own files."""
STATUS_MARK = "status of the command: "

_COMMAND = f"""
cd /root
/bin/sh -c "$(cat /command)" </dev/null
echo "{STATUS_MARK}$?"
stty sane  # once all output has been taken
grep -qw 'quiet loglevel=1' /proc/cmdline && echo 0 >/proc/sys/kernel/printk
poweroff -f
"""
_SHELL = "\ncd /root\nsetsid cttyhack /bin/sh\npoweroff -f\n"


def guest_job(arguments: list[str], folder: Path) -> list[str]:
    """The command that runs the guest in dom0; its files are made in `folder`.  FetchError."""
    parser = argparse.ArgumentParser(
        prog="ci/real-xen run",
        description="One PVH guest under real Xen, as `pyvmm run` has it: its console on standard output.",
        epilog="Exit status: 0 powered off or rebooted; 3 crashed; with --exec, the command's own.",
    )
    parser.add_argument("--pvh", action="store_true", help="enter the image by its PVH entry point (the default)")
    parser.add_argument("--initrd", metavar="FILE", type=Path, help="the initramfs (default for Linux: made of busybox)")
    parser.add_argument("--no-initrd", action="store_true", help="start Linux without an initramfs")
    parser.add_argument("--exec", metavar="CMD", help="run a shell command in the guest, and return its exit status")
    parser.add_argument("--append", default="", metavar="TEXT", help="the kernel command line")
    parser.add_argument("-m", "--memory", type=int, default=256, metavar="MIB", help="RAM (default 256)")
    parser.add_argument("-c", "--vcpus", type=int, default=1, metavar="N", help="virtual CPUs (default 1)")
    parser.add_argument("--disk", action="append", default=[], metavar="PATH[,ro]", help="a raw disk, the first one xvda")
    parser.add_argument("--net", action="store_true", help="a network card, whose other end in dom0 is 10.0.0.1")
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a vmlinux, bzImage or other ELF image with a PVH entry")
    options = parser.parse_args(arguments)
    try:
        configuration = _configuration(options, folder)
    except ImageError as error:
        raise FetchError(str(error)) from None
    (folder / "guest.cfg").write_text(configuration)
    return [str(HERE / "real-xen-guest"), str(IN_DOM0 / "guest.cfg"), NAME, STATUS_MARK if options.exec is not None else ""]


def _configuration(options: argparse.Namespace, folder: Path) -> str:
    image = load_image(options.image)
    command_line = linux_command_line(options.append, options.exec) if image.is_linux else options.append
    words = {
        "name": NAME, "type": "pvh", "kernel": str(options.image.resolve()), "cmdline": command_line,
        "tsc_mode": "native",
        **{f"on_{end}": "preserve" for end in ("poweroff", "reboot", "crash", "watchdog")},
    }  # fmt: skip
    if options.initrd is not None:
        words["ramdisk"] = str(options.initrd.resolve())
    elif image.is_linux and not options.no_initrd:
        (folder / "initrd").write_bytes(_initramfs(options, image.bits))
        words["ramdisk"] = str(IN_DOM0 / "initrd")
    lines = [f"{name} = {_quoted(value)}" for name, value in words.items()]
    lines += [f"memory = {options.memory}", f"vcpus = {options.vcpus}"]
    disks = []
    for number, disk in enumerate(options.disk):
        path, _, flag = disk.partition(",")
        access = "ro" if flag == "ro" else "rw"
        disks.append(f"format=raw,vdev=xvd{chr(ord('a') + number)},access={access},target={Path(path).resolve()}")
    lines.append(f"disk = [{', '.join(map(_quoted, disks))}]")
    lines.append(f"vif = [{_quoted('mac=00:16:3e:00:00:01') if options.net else ''}]")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string of xl's configuration, which knows no escapes.  FetchError."""
    for quote in "\"'":
        if quote not in text:
            return f"{quote}{text}{quote}"
    raise FetchError(f"xl's configuration cannot hold both kinds of quotes: {shlex.quote(text)}")


def _initramfs(options: argparse.Namespace, bits: int) -> bytes:
    names = ["xen_blkfront"] * bool(options.disk) + ["xen_netfront"] * options.net
    folder = module_folder(options.image) if names else None
    modules = ModuleFolder(folder).closure(names) if folder is not None else []
    if options.exec is None:
        return busybox_initramfs(_SHELL, None, modules, bits)
    return busybox_initramfs(_COMMAND, {"command": options.exec.encode() + b"\n"}, modules, bits)
