"""The entry point: parse, call the command, turn its errors into a sentence and an exit status."""

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def _run(options: "argparse.Namespace") -> int:
    from vmm.cli.start import start  # which begins to load the image before it imports the rest

    return start(vars(options))


def _doctor(options: "argparse.Namespace") -> int:
    from vmm.cli.doctor import diagnose, print_json, print_text
    from vmm.errors import ExitStatus

    checks = diagnose(options.image)
    (print_json if options.json else print_text)(checks)
    return 0 if all(check.ok or not check.required for check in checks) else ExitStatus.UNSUPPORTED_HOST


def _completion(options: "argparse.Namespace") -> int:
    from vmm.cli.completion import script

    print(script(options.shell), end="")
    return 0


def _xenstore(options: "argparse.Namespace") -> int:
    from vmm.cli.xenstore import StoreRequest, xenstore

    full, permissions = getattr(options, "full", False), getattr(options, "permissions", False)
    return xenstore(StoreRequest(options.action, options.paths, options.socket, full, permissions))


def _control(options: "argparse.Namespace") -> int:
    from vmm.cli.control import control

    return control(options.command, vars(options))


_COMMANDS = {"run": _run, "doctor": _doctor, "xenstore": _xenstore, "completion": _completion}


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit status."""
    # A start makes objects that live to the end: looking through them again and again costs a tenth of it.
    gc.disable()
    import vmm.cli.lean  # noqa: F401  before all that imports what it does without

    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    finally:
        gc.enable()


def _main(words: list[str]) -> int:
    from vmm.cli.arguments import GROUPS, make_parser
    from vmm.errors import ExitStatus, PyvmmError

    try:
        command = words[0] if words and words[0] in GROUPS else None
        options = make_parser(command).parse_args(words)
        return _COMMANDS.get(options.command, _control)(options)
    except PyvmmError as error:
        print(f"pyvmm: {error}", file=sys.stderr)
        return int(error.exit_status)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        return int(ExitStatus.FAILED)
