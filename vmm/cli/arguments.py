"""What can be typed: every command's arguments, with their help and examples."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Protocol

from vmm import __version__
from vmm.config.options import OPTIONS, For, Takes, default_of
from vmm.errors import UsageError

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

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self.alone: set[str] = set()
        """Options whose value is behind `=`, if they have one: it is not the next word."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with `--trace` alone standing for `--trace=`."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        words[:end] = [f"{word}=" if word in self.alone else word for word in words[:end]]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """UsageError instead of a usage message and an exit."""
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
    parser.add_argument("--version", action="version", version=f"pyvmm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, add in GROUPS.items():
        if command is None or name == command:
            add(commands)
    return parser


class _Commands(Protocol):
    """What `add_subparsers` gives; argparse has no public name for it."""

    def add_parser(self, name: str, **settings: Any) -> "Parser": ...


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
    add_options(run, For.RUN)


def parse_domu(words: list[str]) -> dict[str, Any]:
    """What a file of --with-domu says.  UsageError."""
    parser = Parser(prog="pyvmm run", allow_abbrev=False)
    add_options(parser, For.DOMU)
    return vars(parser.parse_args(words))


_TYPES: dict[Takes, dict[str, Any]] = {
    Takes.NOTHING: {"action": "store_true"},
    Takes.TEXT: {},
    Takes.OPTIONAL: {},
    Takes.MANY: {"action": "append"},
    Takes.INT: {"type": int},
    Takes.FLOAT: {"type": float},
    Takes.PATH: {"type": Path},
    Takes.PATHS: {"type": Path, "action": "append"},
}


def add_options(parser: "Parser", use: For) -> None:
    """Every row of the table of options that is for such a user."""
    groups: dict[str, Any] = {}
    for option in OPTIONS:
        if use not in option.use:
            continue
        into: Any = parser
        if option.group:
            into = groups.setdefault(option.group, None) or parser.add_argument_group(option.group)
            groups[option.group] = into
        if option.exclusive:
            into = groups.setdefault(option.exclusive, None) or parser.add_mutually_exclusive_group()
            groups[option.exclusive] = into
        words: dict[str, Any] = {"help": option.help, **_TYPES[option.takes]}
        if option.metavar is not None:
            words["metavar"] = option.metavar
        if option.choices:
            words["choices"] = [*option.choices]
        if option.takes is not Takes.NOTHING:
            default = default_of(option)
            words["default"] = list(default) if isinstance(default, tuple) else default
        if option.takes is Takes.OPTIONAL:
            parser.alone.update(option.flags)
        if option.flags:
            into.add_argument(*option.flags, dest=option.name, **words)
        else:
            into.add_argument(option.name, nargs="?", **words)


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
    """The commands on a running guest, from their table."""
    from vmm.cli.control import COMMANDS  # which `run` has no use for

    listing = _command(commands, "list", "list the running guests", "pyvmm list", "pyvmm list --json")
    listing.add_argument("--json", action="store_true", help="print JSON")
    for row in COMMANDS:
        command = _command(commands, row.name, row.help, *(f"pyvmm {row.name} guest{example}" for example in row.examples))
        command.add_argument("guest", metavar="NAME", help="the guest, by name or domid (`pyvmm list` tells)")
        for word in row.words:
            command.add_argument(
                word.name, type=word.type, metavar=word.metavar or word.name.upper(), help=word.help,
                nargs=None if word.required else "?",
            )  # fmt: skip
        for flag, text in row.flags:
            command.add_argument(flag, action="store_true", help=text)


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
