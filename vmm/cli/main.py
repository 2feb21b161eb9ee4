"""The commands: parse, call, print.  No logic of its own."""

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cli.arguments import GROUPS, make_parser
from vmm.config.domain import DomainConfig, default_image, parse_size, parse_xen_version
from vmm.config.features import COMBINATIONS
from vmm.errors import ExitStatus, PyvmmError, UsageError
from vmm.host import log
from vmm.xenabi.transport import Transport

if TYPE_CHECKING:
    from vmm.observe.session import Observation
    from vmm.toolstack.prepare import Start


INTERNAL_XENSTORE = Path("internal")


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


def _config(options: argparse.Namespace) -> DomainConfig:
    from vmm.toolstack.prepare import parse_disks, parse_nets, parse_shares

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
        disks=parse_disks(options.disk),
        nets=parse_nets(options.net),
        features=COMBINATIONS["pvh-dom0" if options.dom0 else "pvh-domU"],
        own_xenstore=options.dom0 and options.xenstore is None,
        shares=parse_shares([*options.share, *(["/,ro,tag=host"] if options.root else [])]),
    ).checked()


def _observation(options: argparse.Namespace) -> "Observation | None":
    for option, given in (("--trace-file", options.trace_file), ("--symbols", options.symbols)):
        if given is not None and options.trace is None:
            raise UsageError(f"{option} belongs to --trace, which is missing")
    if options.trace is None and not options.stats and not options.fault and options.timeline is None:
        return None
    from vmm.observe.faults import parse_fault
    from vmm.observe.session import Observation
    from vmm.observe.trace.filters import parse_filter

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
    from vmm.boot.image import Loading

    options.image = options.image or default_image()
    loading = Loading(options.image)  # beside all that is still to be imported
    from vmm.cli.run import Request, run_guest

    if options.timeout is not None and not 0 < options.timeout < threading_limit():
        raise UsageError(f"--timeout takes seconds above 0, not {options.timeout:g}")
    log.configure(options.log_level, json=options.log_json)
    config = _config(options)
    request = Request(
        start=_start(options),
        timeout_s=options.timeout,
        restart=(options.on_reboot or ("exit" if options.guest_command is not None else "restart")) == "restart",
        xenstore=None if options.xenstore == INTERNAL_XENSTORE else options.xenstore,
        observation=_observation(options),
        gdb=options.gdb.removesuffix(",wait") if options.gdb else None,
        beside=_beside(options),
        gdb_wait=bool(options.gdb) and options.gdb.endswith(",wait"),
    )
    if options.with_domu:
        config = config._replace(shareable=True)
    return run_guest(config, request, loading)


def _start(options: argparse.Namespace) -> "Start":
    from vmm.toolstack.prepare import Start

    return Start(
        command=options.guest_command,
        default_initrd=not options.no_initrd,
        modules=_module_folder(options.modules),
        host_root=options.root is not None,
    )


def _beside(options: argparse.Namespace) -> "tuple[tuple[DomainConfig, Start], ...]":
    """The guests of --with-domu, from their files."""
    if options.with_domu and not options.dom0:
        raise UsageError("--with-domu is for a guest beside a dom0; add --dom0")
    found = []
    for number, path in enumerate(options.with_domu, 1):
        import shlex

        try:
            words = shlex.split(path.read_text(), comments=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"--with-domu {path}: {getattr(error, 'strerror', None) or error}") from None
        try:
            given = make_parser("run").parse_args(["run", "--console", "none", "--name", f"domU-{number}", *words])
            if given.dom0 or given.with_domu or given.console == "stdio":
                raise UsageError("a domU has no --dom0, no --with-domu, and no console on stdio")
            found.append((_config(given)._replace(shareable=True), _start(given)))
        except UsageError as error:
            raise UsageError(f"--with-domu {path}: {error}") from None
    return tuple(found)


def _module_folder(path: Path | None) -> Path | None:
    if path is not None and not (path / "kernel").is_dir():
        raise UsageError(f"--modules {path} has no folder `kernel`; give something like /lib/modules/6.1.0-1-amd64")
    return path


def threading_limit() -> float:
    """The longest wait that Python's threads can do, seconds."""
    import threading

    return threading.TIMEOUT_MAX


def _doctor(options: argparse.Namespace) -> int:
    from vmm.cli.doctor import diagnose, print_json, print_text

    checks = diagnose(options.image)
    (print_json if options.json else print_text)(checks)
    return 0 if all(check.ok or not check.required for check in checks) else ExitStatus.UNSUPPORTED_HOST


def _completion(options: argparse.Namespace) -> int:
    from vmm.cli.completion import script

    print(script(options.shell), end="")
    return 0


def _xenstore(options: argparse.Namespace) -> int:
    from vmm.cli.xenstore import StoreRequest, xenstore

    full, permissions = getattr(options, "full", False), getattr(options, "permissions", False)
    return xenstore(StoreRequest(options.action, options.paths, options.socket, full, permissions))


_COMMANDS = {"run": _run, "doctor": _doctor, "xenstore": _xenstore, "completion": _completion}


def main(arguments: list[str] | None = None) -> int:
    """The console script; returns the exit status."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        words = ["--trace=" if word == "--trace" else word for word in words]  # its filter is not the next word
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
