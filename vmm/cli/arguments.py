"""What can be typed: every command's arguments, with their help and examples."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeAlias

from vmm.errors import UsageError
from vmm.host import log
from vmm.host.consoles import FORMS
from vmm.xenabi.transport import Transport

EPILOG = """exit status of run:
  0  the guest powered off; with --exec, the status of the command
  1  failed (a bad image, say)
  2  usage
  3  the guest crashed
  4  the guest was stopped by --timeout
  5  this host cannot run it
  130  interrupted: Ctrl-C, SIGTERM, Ctrl-] on the guest's console, or `pyvmm destroy`
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One is made for every argument that is added; left to itself it imports shutil, and three compressions with it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


@cache
def _columns() -> int:
    if columns := os.environ.get("COLUMNS", ""):
        with suppress(ValueError):
            return max(int(columns), 20)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class Parser(argparse.ArgumentParser):
    """Answers bad input with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def make_parser(command: str | None = None) -> Parser:
    """The parser of one command, or of all: to make them all costs a start 10 ms."""
    parser = Parser(
        prog="pyvmm",
        description="Boot unmodified Linux kernels as Xen PVH guests on KVM.",
        epilog=_examples(
            "pyvmm run vmlinuz --exec 'uname -r'",
            "pyvmm list",
            "pyvmm doctor vmlinuz",
            "pyvmm run --help",
        ),
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"pyvmm {_version()}" if "--version" in sys.argv else "")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, add in GROUPS.items():
        if command is None or name == command:
            add(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run",
        help="start a guest and wait for its end",
        description="Start a guest and wait for its end.",
        epilog=_examples(
            "pyvmm run                                       # the host's own kernel, to a shell",
            "pyvmm run vmlinuz -c 2 -m 1G --append 'earlyprintk=xen'",
            "pyvmm run vmlinuz --exec 'cat /sys/hypervisor/type'",
            "pyvmm run vmlinuz --disk debian.qcow2 --append 'root=/dev/xvda rw' --net user",
            "pyvmm run vmlinuz --trace=grant_table_op,failed --exec true",
            "pyvmm run vmlinuz --timeline boot.html --stats --exec true",
            "pyvmm run vmlinuz --gdb 1234,wait               # then: gdb vmlinux -ex 'target remote :1234'",
        )
        + EPILOG,
        formatter_class=_Formatter,
    )
    run.add_argument("--pvh", action="store_true", help="enter the image by its PVH entry point (the default)")
    run.add_argument("--dom0", action="store_true", help="boot it as Xen's initial, privileged domain on a PC with PCI")
    run.add_argument(
        "--with-domu",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a guest beside the dom0: FILE holds IMAGE and options of `run` as one would type them, lines as one likes, "
        "# before a comment; its console is --console WHERE, none unless given",
    )
    run.add_argument(
        "image",
        metavar="IMAGE",
        type=Path,
        nargs="?",
        help="a vmlinux, bzImage or other ELF image with a PVH entry (default: the running kernel's in /boot)",
    )
    initrd = run.add_mutually_exclusive_group()
    initrd.add_argument(
        "--initrd", metavar="FILE", type=Path, help="the initramfs (default for Linux: a shell, made of the host's busybox)"
    )
    run.add_argument(
        "--modules",
        metavar="DIR",
        type=Path,
        help="the kernel's modules, for drivers in the default initrd (default: where the image's package has them)",
    )
    initrd.add_argument("--no-initrd", action="store_true", help="start Linux without an initramfs")
    initrd.add_argument(
        "--exec",
        metavar="CMD",
        dest="guest_command",
        help="run a shell command in the guest instead, and return its exit status",
    )
    run.add_argument(
        "--append",
        metavar="TEXT",
        default="",
        help="the kernel command line; for a Linux kernel, console=hvc0 is put first if no console is named",
    )
    run.add_argument("-m", "--memory", metavar="SIZE", default="512M", help="RAM: 512 or 512M, 2G (default 512M)")
    run.add_argument("-c", "--vcpus", metavar="N", type=int, default=1, help="virtual CPUs (default 1)")
    run.add_argument("--max-vcpus", metavar="N", type=int, help="how many `pyvmm set-vcpus` may plug in")
    run.add_argument(
        "--disk",
        metavar="PATH[,OPTION...]",
        action="append",
        default=[],
        help="a disk, the first one xvda: ro, name=xvdc, direct (no host cache), queues=N, nodiscard, format=qcow2",
    )
    run.add_argument(
        "--net",
        metavar="KIND[,OPTION...]",
        action="append",
        default=[],
        help="a network card: tap, tap:NAME, bridge:NAME, or user (passt: needs no root); mac=ADDRESS, mtu=N, queues=N,"
        " and for user hostfwd=tcp::8080-:80",
    )
    run.add_argument(
        "--share",
        metavar="PATH[,OPTION...]",
        action="append",
        default=[],
        help="a folder of the host's, for `mount -t 9p -o trans=xen TAG DIR`: tag=NAME (default share0), ro",
    )
    run.add_argument(
        "--root", choices=["host"], help="use the host's own root, read-only, as the guest's, for --exec or a shell"
    )
    run.add_argument("--name", help="the guest's name, for the other commands (default guest-PID)")
    run.add_argument("--console", metavar="WHERE", default="stdio", help=f"the PV console: {FORMS}")
    run.add_argument("--serial", metavar="WHERE", default="none", help="a 16550 on COM1: the same places (default none)")
    run.add_argument(
        "--on-reboot",
        choices=["restart", "exit"],
        help="start the guest again, or end with status 0 (default: restart; exit with --exec)",
    )
    run.add_argument(
        "--transport",
        choices=["auto", *(item.value for item in Transport)],
        default="auto",
        help="how hypercalls leave the guest (`pyvmm doctor IMAGE` says what auto takes)",
    )
    run.add_argument("--no-kvm-xen", action="store_true", help="do without KVM_XEN, as on a host that has not got it")
    run.add_argument(
        "--xenstore",
        metavar="PATH",
        type=Path,
        help="serve the guest's xenstore on a Unix socket; a dom0, which runs xenstored itself unless this is given, gets"
        " pyvmm's, without a socket for `internal`",
    )
    watching = run.add_argument_group("looking on")
    watching.add_argument(
        "--trace",
        metavar="FILTER",
        help="print hypercalls, events, xenstore messages and other exits as they happen, like strace; FILTER "
        "(--trace=...) is names and patterns between commas, `!` before what is not wanted, vcpu=N, failed",
    )
    watching.add_argument("--trace-file", metavar="FILE", type=Path, help="to a file instead of standard error")
    watching.add_argument("--trace-format", choices=["text", "jsonl", "perfetto"], default="text")
    watching.add_argument(
        "--symbols",
        metavar="FILE",
        type=Path,
        help="a vmlinux, System.map or /proc/kallsyms to name the trace's addresses",
    )
    watching.add_argument(
        "--gdb",
        metavar="WHERE[,wait]",
        help="let GDB attach (`target remote`) at PORT, ADDRESS:PORT or unix:PATH; wait: the guest starts when GDB says so",
    )
    watching.add_argument(
        "--timeline", metavar="FILE", type=Path, help="write an HTML page: phases, what happened when, the slowest gaps"
    )
    watching.add_argument("--stats", action="store_true", help="at the end, count hypercalls, exits, events and devices")
    watching.add_argument(
        "--fault",
        metavar="FAULT",
        action="append",
        default=[],
        help="have something go wrong: fail:NAME[,errno=ENOMEM], delay:NAME[,seconds=S], corrupt:NAME, drop:EVENT; "
        "each with every=N, at=N, probability=P, times=N",
    )
    watching.add_argument("--fault-seed", metavar="N", type=int, default=0, help="for what has a probability (default 0)")
    run.add_argument("--timeout", metavar="SECONDS", type=float, help="stop the guest after this long")
    run.add_argument("--xen-version", metavar="X.Y.Z", default="4.17.7", help="the Xen that the guest is shown")
    run.add_argument("--log-level", choices=log.LEVELS, default="warning")
    run.add_argument("--log-json", action="store_true", help="log lines as JSON")


def _add_doctor(commands: _Commands) -> None:
    doctor = _command(
        commands,
        "doctor",
        "say what this host offers, and what to do about what it lacks",
        "pyvmm doctor",
        "pyvmm doctor vmlinuz",
    )
    doctor.add_argument("image", metavar="IMAGE", type=Path, nargs="?", help="say which transport this image would get")
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _add_xenstore(commands: _Commands) -> None:
    store = _command(
        commands,
        "xenstore",
        "look into the xenstore of a running `pyvmm run --xenstore PATH`",
        "pyvmm xenstore --socket /run/xs ls -f",
        "pyvmm xenstore --socket /run/xs watch /local/domain",
    )
    store.add_argument("--socket", metavar="PATH", type=Path, help="where it listens (default: $XENSTORED_PATH)")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("ls", help="list what is below a path")
    listing.add_argument("-f", action="store_true", dest="full", help="whole paths")
    listing.add_argument("-p", action="store_true", dest="permissions", help="permissions, too")
    listing.add_argument("paths", metavar="PATH", nargs="*")
    for name, meaning, words in (
        ("read", "print values", "PATH"),
        ("write", "set values: PATH VALUE ...", "WORD"),
        ("rm", "remove nodes with all below them", "PATH"),
        ("watch", "print the path of each change, until interrupted", "PATH"),
    ):
        actions.add_parser(name, help=meaning).add_argument("paths", metavar=words, nargs="+")


def _add_control(commands: _Commands) -> None:
    """The commands on a running guest; each is a row: name, what it does, its further arguments, and an example of them."""
    listing = _command(commands, "list", "list the running guests", "pyvmm list", "pyvmm list --json")
    listing.add_argument("--json", action="store_true", help="print JSON")
    for name, meaning, arguments, example in _CONTROL:
        command = _command(commands, name, meaning, f"pyvmm {name} guest{example}")
        command.add_argument("name", metavar="NAME", help="the guest (`pyvmm list` tells)")
        for word, kind, text in arguments:
            command.add_argument(word, type=kind, metavar=word.upper(), help=text)
        if name.startswith("detach"):
            command.add_argument("--force", action="store_true", help="whether or not the guest lets it go")


_CONTROL: list[tuple[str, str, list[tuple[str, type, str]], str]] = [
    ("shutdown", "ask a guest's kernel to power off", [], ""),
    ("reboot", "ask a guest's kernel to reboot", [], ""),
    ("destroy", "stop a guest at once", [], ""),
    ("console", "use a guest's console on this terminal; Ctrl-] leaves it", [], ""),
    ("sysrq", "send a guest's kernel a SysRq key", [("key", str, "one letter or digit")], " t"),
    (
        "set-memory",
        "have a guest balloon to so much RAM",
        [("size", str, "512M; at most what it started with")],
        " 256M",
    ),
    ("set-vcpus", "plug a guest's vCPUs in or out", [("count", int, "how many it is to use")], " 2"),
    ("attach-disk", "give a running guest a disk", [("spec", str, "as for run --disk")], " data.img,ro"),
    ("detach-disk", "take a disk away again", [("disk", str, "xvdb, say")], " xvdb"),
    ("attach-net", "give a running guest a network card", [("spec", str, "as for run --net")], " user"),
    ("detach-net", "take a network card away again", [("number", int, "0 for the first")], " 0"),
]


def _add_completion(commands: _Commands) -> None:
    completion = _command(
        commands,
        "completion",
        "print a shell's completion script",
        "source <(pyvmm completion bash)",
        "pyvmm completion fish >~/.config/fish/completions/pyvmm.fish",
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])


def _examples(*lines: str) -> str:
    return "examples:\n" + "".join(f"  {line}\n" for line in lines) + "\n"


def _command(commands: _Commands, name: str, meaning: str, *examples: str) -> Parser:
    return commands.add_parser(
        name,
        help=meaning,
        description=f"{meaning[0].upper()}{meaning[1:]}.",
        epilog=_examples(*examples),
        formatter_class=_Formatter,
    )


GROUPS: dict[str, Callable[[_Commands], None]] = {
    "run": _add_run,
    "doctor": _add_doctor,
    "xenstore": _add_xenstore,
    "list": _add_control,
    "completion": _add_completion,
}
"""What adds a command to the parser; those on a running guest come together."""


def _version() -> str:
    from importlib.metadata import version

    return version("pyvmm")
