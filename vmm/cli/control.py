"""The commands on a running guest: one row each, from which the parser, completion and the manual page follow."""

import sys
from typing import Any, NamedTuple

from vmm.devices.kinds import KINDS, Row
from vmm.errors import ExitStatus


class Word(NamedTuple):
    """One argument of a command; `name` is its key in the request."""

    name: str
    help: str
    type: type = str
    metavar: str = ""
    required: bool = True


class Command(NamedTuple):
    """One command: its name is the request's, too."""

    name: str
    help: str
    words: tuple[Word, ...] = ()
    examples: tuple[str, ...] = ("",)
    flags: tuple[tuple[str, str], ...] = ()


_FORCE = (("--force", "whether or not the guest lets it go"),)


def _of_devices(name: str, row: Row) -> tuple[Command, Command]:
    return (
        Command(
            f"attach-{name}", f"give a running guest {row.what}", (Word("spec", f"as for run --{name}"),),
            (f" {row.example}",),
        ),
        Command(
            f"detach-{name}", f"take {row.what} away again", (Word("device", row.named_by),),
            (f" {row.named_by.split(' ')[0].rstrip(',')}",), _FORCE,
        ),
    )  # fmt: skip


COMMANDS: list[Command] = [
    Command("shutdown", "ask a guest's kernel to power off"),
    Command("reboot", "ask a guest's kernel to reboot"),
    Command("destroy", "stop a guest at once"),
    Command("pause", "stop a guest's vCPUs; its devices go on"),
    Command("unpause", "let a paused guest go on"),
    Command("console", "use a guest's console on this terminal; Ctrl-] leaves it"),
    Command("sysrq", "send a guest's kernel a SysRq key", (Word("key", "one letter or digit"),), (" t",)),
    Command(
        "set-memory", "have a guest balloon to so much RAM",
        (Word("size", "512M; at most what it started with"),), (" 256M",),
    ),
    Command("set-vcpus", "plug a guest's vCPUs in or out", (Word("count", "how many it is to use", int),), (" 2",)),
    *(command for name, row in KINDS.items() for command in _of_devices(name, row)),
    Command(
        "trace", "print what a running guest does as it happens, until interrupted, like strace -p",
        (Word("filter", "as for run --trace (default: all)", required=False),), ("", " grant_table_op,failed"),
        (("--json", "JSON lines"),),
    ),
    Command(
        "stats", "count what a running guest does, until interrupted, and print the counts",
        (Word("seconds", "how long (default: until interrupted)", float, required=False),), ("", " 10"),
    ),
    Command(
        "gdb", "let GDB attach to a running guest",
        (Word("where", "PORT, ADDRESS:PORT or unix:PATH, as for run --gdb"),), (" 1234", " unix:/tmp/gdb"),
    ),
]  # fmt: skip


def control(command: str, values: dict[str, Any]) -> int:
    """Carry out one of them, or `list`: the exit status.  PyvmmError."""
    from vmm.control.client import Control, print_list

    if command == "list":
        print_list(as_json=values["json"])
        return ExitStatus.POWERED_OFF
    row = next(row for row in COMMANDS if row.name == command)
    words = {word.name: values[word.name] for word in row.words if values[word.name] is not None}
    words |= {flag.lstrip("-"): True for flag, _ in row.flags if values[flag.lstrip("-")]}
    with Control(values["guest"]) as connection:
        if command == "console":
            return connection.console()
        if command in ("trace", "stats"):
            return connection.follow(command, words)
        answer = connection.ask(command, **words)
        if answer is not None:
            print(answer)
        sys.stdout.flush()
    return ExitStatus.POWERED_OFF
