"""From the parsed command line of `pyvmm run` to a request that `cli.run` carries out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.arguments import parse_domu
from vmm.config.domain import DomainConfig
from vmm.config.options import For, Of, collect, refuse
from vmm.errors import UsageError
from vmm.host import log

if TYPE_CHECKING:
    from vmm.cli.run import Beside
    from vmm.observe.session import Observation

INTERNAL_XENSTORE = Path("internal")


def start(values: dict[str, Any]) -> int:
    """Run the guest to its end: the exit status.  PyvmmError."""
    from vmm.boot.image import Loading
    from vmm.config.domain import default_image

    values["image"] = values["image"] or default_image()
    loading = Loading(values["image"])  # beside all that is still to be imported
    from vmm.cli.run import Request, run_guest
    from vmm.toolstack.prepare import Start

    asked = collect(values, Of.RUN, For.RUN)
    log.configure(values["log_level"], json=values["log_json"])
    own_xenstore = values["dom0"] and values["xenstore"] is None
    config = DomainConfig(**collect(values, Of.DOMAIN, For.RUN), own_xenstore=own_xenstore).checked()
    on_reboot = asked["on_reboot"] or ("exit" if values["exec"] is not None else "restart")
    request = Request(
        start=Start(**collect(values, Of.START, For.RUN)),
        timeout_s=asked["timeout_s"],
        restart=on_reboot == "restart",
        xenstore=None if asked["xenstore"] == INTERNAL_XENSTORE else asked["xenstore"],
        beside=_beside(values),
    )
    return run_guest(config, request, loading, _observation(values))


def _observation(values: dict[str, Any]) -> "Observation | None":
    wanted = collect(values, Of.OBSERVE, For.RUN)
    for option, given in (("--trace-file", wanted["trace_file"]), ("--symbols", wanted["symbols"])):
        if given is not None and wanted["trace"] is None:
            raise UsageError(f"{option} belongs to --trace, which is missing")
    if wanted["trace"] is None and not wanted["stats"] and not wanted["faults"] and wanted["timeline"] is None:
        return None
    from vmm.observe.faults import parse_fault
    from vmm.observe.session import Observation
    from vmm.observe.trace.filters import parse_filter

    if wanted["trace"] is not None:
        wanted["trace"] = parse_filter(wanted["trace"])
    wanted["faults"] = tuple(map(parse_fault, wanted["faults"]))
    return Observation(**wanted)


def _beside(values: dict[str, Any]) -> "tuple[Beside, ...]":
    """The guests of --with-domu, from their files."""
    if values["with_domu"] and not values["dom0"]:
        raise UsageError("--with-domu is for a guest beside a dom0; add --dom0")
    return tuple(_domu(number, path) for number, path in enumerate(values["with_domu"], 1))


def _domu(number: int, path: Path) -> "Beside":
    import shlex

    from vmm.cli.run import Beside
    from vmm.toolstack.prepare import Start

    try:
        words = shlex.split(path.read_text(), comments=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"--with-domu {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        refuse(words, For.DOMU, "a guest beside a dom0")
        given = parse_domu(["--console", "none", "--name", f"domU-{number}", *words])
        if "stdio" in (given["console"], given["serial"]):
            raise UsageError("standard input and output are the dom0's, so --console and --serial take another place here")
        config = DomainConfig(**collect(given, Of.DOMAIN, For.DOMU)).checked()
        return Beside(config, Start(**collect(given, Of.START, For.DOMU)))
    except UsageError as error:
        raise UsageError(f"--with-domu {path}: {error}") from None
