"""The commands: parse, call, print.  No logic of its own."""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from vmm import log
from vmm.config import DomainConfig, parse_size, parse_xen_version
from vmm.devices.chardev import FORMS
from vmm.errors import ExitStatus, PyvmmError, UsageError
from vmm.xenabi.transport import Transport

if TYPE_CHECKING:
    from vmm.devices.block.spec import Disk
    from vmm.devices.net.spec import Net
    from vmm.devices.ninep.spec import Share
    from vmm.observe import Observation

EPILOG = """exit status of run:
  0  the guest powered off; with --exec, the status of the command
  1  failed (a bad image, say)
  2  usage
  3  the guest crashed
  4  the guest was stopped by --timeout
  5  this host cannot run it
  130  interrupted: Ctrl-C, SIGTERM, Ctrl-] on the guest's console, or `pyvmm destroy`
"""


class _Parser(argparse.ArgumentParser):
    """Answers bad input with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser(command: str | None) -> _Parser:
    """The parser of one command, or of all: to make them all costs a start 10 ms."""
    parser = _Parser(
        prog="pyvmm",
        description="Boot unmodified Linux kernels as Xen PVH guests on KVM.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyvmm {_version()}" if "--version" in sys.argv else "")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, add in _GROUPS.items():
        if command is None or name == command:
            add(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run",
        help="start a guest and wait for its end",
        description="Start a guest and wait for its end.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--pvh", action="store_true", help="enter the image by its PVH entry point (the default)")
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
    run.add_argument("--xenstore", metavar="PATH", type=Path, help="serve the guest's xenstore on a Unix socket")
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
    doctor = commands.add_parser("doctor", help="say what this host offers, and what to do about what it lacks")
    doctor.add_argument("image", metavar="IMAGE", type=Path, nargs="?", help="say which transport this image would get")
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _add_xenstore(commands: _Commands) -> None:
    store = commands.add_parser("xenstore", help="look into the xenstore of a running `pyvmm run --xenstore PATH`")
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
    """The commands on a running guest; each is a row: name, what it does, its further arguments."""
    commands.add_parser("list", help="list the running guests").add_argument(
        "--json", action="store_true", help="print JSON"
    )
    for name, meaning, arguments in _CONTROL:
        command = commands.add_parser(name, help=meaning, description=meaning[0].upper() + meaning[1:] + ".")
        command.add_argument("name", metavar="NAME", help="the guest (`pyvmm list` tells)")
        for word, kind, text in arguments:
            command.add_argument(word, type=kind, metavar=word.upper(), help=text)
        if name.startswith("detach"):
            command.add_argument("--force", action="store_true", help="whether or not the guest lets it go")


_CONTROL: list[tuple[str, str, list[tuple[str, type, str]]]] = [
    ("shutdown", "ask a guest's kernel to power off", []),
    ("reboot", "ask a guest's kernel to reboot", []),
    ("destroy", "stop a guest at once", []),
    ("console", "use a guest's console on this terminal; Ctrl-] leaves it", []),
    ("sysrq", "send a guest's kernel a SysRq key", [("key", str, "one letter or digit")]),
    ("set-memory", "have a guest balloon to so much RAM", [("size", str, "512M, 1G; at most what it started with")]),
    ("set-vcpus", "plug a guest's vCPUs in or out", [("count", int, "how many it is to use")]),
    ("attach-disk", "give a running guest a disk", [("spec", str, "as for run --disk")]),
    ("detach-disk", "take a disk away again", [("disk", str, "xvdb, say")]),
    ("attach-net", "give a running guest a network card", [("spec", str, "as for run --net")]),
    ("detach-net", "take a network card away again", [("number", int, "0 for the first")]),
]


_GROUPS: dict[str, Callable[[_Commands], None]] = {
    "run": _add_run,
    "doctor": _add_doctor,
    "xenstore": _add_xenstore,
    "list": _add_control,
}
"""What adds a command to the parser; those on a running guest come together."""


def _control(options: argparse.Namespace) -> int:
    from vmm.control.client import Control, print_list

    if options.command == "list":
        print_list(as_json=options.json)
        return 0
    with Control(options.name) as control:
        if options.command == "console":
            return control.console()
        words = {word: getattr(options, word) for word in ("key", "size", "count", "spec", "number") if word in options}
        if "disk" in options:
            words["name"] = options.disk
        answer = control.ask(options.command, **words, force=getattr(options, "force", False))
        if answer is not None:
            print(answer)
    return 0


def _version() -> str:
    from importlib.metadata import version

    return version("pyvmm")


def _disks(texts: list[str]) -> "tuple[Disk, ...]":
    if not texts:
        return ()
    from vmm.devices.block.spec import device_name, parse_disk

    return tuple(parse_disk(text, device_name(index)) for index, text in enumerate(texts))


def _nets(texts: list[str]) -> "tuple[Net, ...]":
    if not texts:
        return ()
    from vmm.devices.net.spec import parse_net

    return tuple(map(parse_net, texts))


def _shares(texts: list[str]) -> "tuple[Share, ...]":
    if not texts:
        return ()
    from vmm.devices.ninep.spec import parse_share

    return tuple(parse_share(text, f"share{index}") for index, text in enumerate(texts))


def _config(options: argparse.Namespace) -> DomainConfig:
    from vmm.prepare import default_image

    return DomainConfig(
        image=options.image or default_image(),
        initrd=options.initrd,
        command_line=options.append,
        memory_bytes=parse_size(options.memory),
        vcpus=options.vcpus,
        max_vcpus=options.max_vcpus,
        name=options.name or f"guest-{os.getpid()}",
        console=options.console,
        serial=options.serial,
        transport=None if options.transport == "auto" else Transport(options.transport),
        kvm_xen=not options.no_kvm_xen,
        xen_version=parse_xen_version(options.xen_version),
        disks=_disks(options.disk),
        nets=_nets(options.net),
        shares=_shares([*options.share, *(["/,ro,tag=host"] if options.root else [])]),
    ).checked()


def _observation(options: argparse.Namespace) -> "Observation | None":
    for option, given in (("--trace-file", options.trace_file), ("--symbols", options.symbols)):
        if given is not None and options.trace is None:
            raise UsageError(f"{option} belongs to --trace, which is missing")
    if options.trace is None and not options.stats and not options.fault and options.timeline is None:
        return None
    from vmm.faults import parse_fault
    from vmm.observe import Observation
    from vmm.trace.filters import parse_filter

    return Observation(
        None if options.trace is None else parse_filter(options.trace),
        options.trace_file,
        options.trace_format,
        options.symbols,
        options.stats,
        options.timeline,
        tuple(map(parse_fault, options.fault)),
        options.fault_seed,
    )


def _run(options: argparse.Namespace) -> int:
    gc.disable()  # the start makes objects that live to the end; looking through them again and again costs 5 ms
    from vmm.prepare import Start
    from vmm.run import Request, run_guest

    if options.timeout is not None and not 0 < options.timeout < threading_limit():
        raise UsageError(f"--timeout takes seconds above 0, not {options.timeout:g}")
    log.configure(options.log_level, json=options.log_json)
    request = Request(
        start=Start(
            command=options.guest_command,
            default_initrd=not options.no_initrd,
            modules=_module_folder(options.modules),
            host_root=options.root is not None,
        ),
        timeout_s=options.timeout,
        restart=(options.on_reboot or ("exit" if options.guest_command is not None else "restart")) == "restart",
        xenstore=options.xenstore,
        observation=_observation(options),
        gdb=options.gdb.removesuffix(",wait") if options.gdb else None,
        gdb_wait=bool(options.gdb) and options.gdb.endswith(",wait"),
    )
    return run_guest(_config(options), request)


def _module_folder(path: Path | None) -> Path | None:
    if path is not None and not (path / "kernel").is_dir():
        raise UsageError(f"--modules {path} has no folder `kernel`; give something like /lib/modules/6.1.0-1-amd64")
    return path


def threading_limit() -> float:
    """The longest wait that Python's threads can do, seconds."""
    import threading

    return threading.TIMEOUT_MAX


def _doctor(options: argparse.Namespace) -> int:
    from vmm.doctor import diagnose, print_json, print_text

    checks = diagnose(options.image)
    (print_json if options.json else print_text)(checks)
    return 0 if all(check.ok or not check.required for check in checks) else ExitStatus.UNSUPPORTED_HOST


def _xenstore(options: argparse.Namespace) -> int:
    from vmm.storecmd import StoreRequest, xenstore

    full, permissions = getattr(options, "full", False), getattr(options, "permissions", False)
    return xenstore(StoreRequest(options.action, options.paths, options.socket, full, permissions))


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit status."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        words = ["--trace=" if word == "--trace" else word for word in words]  # its filter is not the next word
        command = words[0] if words and words[0] in _GROUPS else None
        options = _parser(command).parse_args(words)
        return {"run": _run, "doctor": _doctor, "xenstore": _xenstore}.get(options.command, _control)(options)
    except PyvmmError as error:
        print(f"pyvmm: {error}", file=sys.stderr)
        return int(error.exit_status)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        return int(ExitStatus.FAILED)
