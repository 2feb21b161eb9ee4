"""The manual page, made from the parser."""

import argparse

from vmm.cli.arguments import EPILOG, Parser, make_parser

HEAD = r""".TH PYVMM 1 "" "pyvmm" "User Commands"
.SH NAME
pyvmm \- boot unmodified Linux kernels as Xen PVH guests on KVM
.SH SYNOPSIS
.B pyvmm
.I COMMAND
.RI [ OPTION ]...
.SH DESCRIPTION
.B pyvmm
is a virtual machine monitor that shows its guests a Xen-compatible ABI on any Linux machine with KVM: no Xen host, no QEMU,
no host kernel option.
.SH COMMANDS
"""
TAIL = r""".SH ENVIRONMENT
.TP
.B PYVMM_KERNEL
The image that is booted where none is given, in place of the running kernel's own.
.TP
.B XENSTORED_PATH
Where
.B pyvmm xenstore
finds the socket of a guest's xenstore.
.SH FILES
.TP
.I /run/pyvmm
The control sockets of root's guests; other users have theirs in
.IR $XDG_RUNTIME_DIR/pyvmm .
.SH SEE ALSO
.BR qemu-system-x86_64 (1),
.BR xl (1),
.BR passt (1),
.BR diod (8),
.BR gdb (1)
"""


def roff(text: str) -> str:
    """Text in which nothing is a command."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())


def command(name: str, parser: Parser) -> list[str]:
    """One command's section."""
    lines = [f".SS pyvmm {roff(name)}", roff(parser.description or "")]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            lines += [".TP", ".I ACTION", roff(", ".join(action.choices))]
        elif action.dest != "help":
            lines += [".TP", _left(action), roff(action.help or "")]
    examples = (parser.epilog or "").removesuffix(EPILOG).removeprefix("examples:\n").rstrip()
    if examples:
        lines += [".PP", "Examples:", ".PP", ".nf", roff(examples), ".fi"]
    return lines


def _left(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar or "|".join(map(str, action.choices or [action.dest.upper()])))
    names = ", ".join(action.option_strings)
    return rf"\fB{roff(names)}\fR \fI{roff(value)}\fR" if names else rf"\fI{roff(value)}\fR"


def manual() -> str:
    """The whole page."""
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    lines = [line for name, parser in commands.choices.items() for line in command(name, parser)]
    title, _, statuses = EPILOG.partition("\n")
    status = [".SH EXIT STATUS", f"{roff(title)}", ".PP", ".nf", roff(statuses.rstrip()), ".fi"]
    return HEAD + "\n".join([*lines, *status]) + "\n" + TAIL


if __name__ == "__main__":
    print(manual(), end="")
