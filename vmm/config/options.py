"""The options: one row each.  The command line, its completion, the manual page, `vmm.Guest` and the files of `--with-domu`
all walk this table.

A row says how the option is written, what it takes, who may use it, and which fields of which object it sets.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from vmm.config.domain import default_image, default_name, parse_size, parse_xen_version
from vmm.config.features import COMBINATIONS
from vmm.devices.kinds import KINDS, parse_specs
from vmm.errors import UsageError
from vmm.host import log
from vmm.host.consoles import FORMS
from vmm.xenabi.transport import Transport


class For(Enum):
    """Who may use an option."""

    RUN = "run"
    """`pyvmm run`."""
    DOMU = "with-domu"
    """A file of `--with-domu`."""
    GUEST = "Guest"
    """`vmm.Guest`, as an argument of that name."""


class Of(Enum):
    """Which object has the field that an option sets."""

    DOMAIN = "config.DomainConfig"
    START = "toolstack.Start"
    RUN = "cli.run.Request"
    OBSERVE = "observe.Observation"


class Takes(Enum):
    """What follows the option."""

    NOTHING = "nothing"
    TEXT = "text"
    MANY = "a text, each time it is given"
    INT = "a number"
    FLOAT = "a number with a fraction"
    PATH = "a path"
    PATHS = "a path, each time it is given"
    OPTIONAL = "a text behind `=`, or nothing"


class Sets(NamedTuple):
    """A field, and its value from what was given."""

    of: Of
    field: str
    convert: Callable[[Any], Any] = lambda value: value


class Option(NamedTuple):
    """One option."""

    flags: tuple[str, ...]
    """As it is written; none for what stands alone."""
    help: str
    takes: Takes = Takes.TEXT
    sets: tuple[Sets, ...] = ()
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    group: str = ""
    """The heading in the help."""
    exclusive: str = ""
    """Options with the same word here exclude each other."""
    use: frozenset[For] = frozenset({For.RUN, For.DOMU})
    argument: str = ""
    """Its name as an argument of `vmm.Guest`, where that is not the option's."""

    @property
    def name(self) -> str:
        """What the parsed value is called."""
        return (self.flags[-1].lstrip("-") if self.flags else self.metavar or "").replace("-", "_").lower()

    @property
    def keyword(self) -> str:
        """What `vmm.Guest` calls it."""
        return self.argument or self.name


JOINED = {"devices"}
"""Fields to which several options add."""

_RUN_ALONE = frozenset({For.RUN})
_EVERYWHERE = frozenset(For)
_LOOKING_ON = "looking on"


def _image(value: Any) -> Path:
    return Path(value) if value is not None else default_image()


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _modules(value: Any) -> Path | None:
    path = _path(value)
    if path is not None and not (path / "kernel").is_dir():
        raise UsageError(f"--modules {path} has no folder `kernel`; give something like /lib/modules/6.1.0-1-amd64")
    return path


def _transport(value: Any) -> Transport | None:
    if value in (None, "auto"):
        return None
    if value not in set(Transport):
        raise UsageError(f"--transport takes auto, {', '.join(Transport)}, not {value!r}")
    return Transport(value)


def _timeout(value: float | None) -> float | None:
    import threading

    if value is not None and not 0 < value < threading.TIMEOUT_MAX:
        raise UsageError(f"--timeout takes seconds above 0, not {value:g}")
    return value


def _devices(kind: str) -> tuple[Sets, ...]:
    return (Sets(Of.DOMAIN, "devices", lambda texts: parse_specs(kind, texts)),)


OPTIONS: list[Option] = [
    Option(("--pvh",), "enter the image by its PVH entry point (the default)", Takes.NOTHING),
    Option(
        ("--dom0",), "boot it as Xen's initial, privileged domain on a PC with PCI", Takes.NOTHING,
        (Sets(Of.DOMAIN, "features", lambda dom0: COMBINATIONS["pvh-dom0" if dom0 else "pvh-domU"]),),
        use=_RUN_ALONE,
    ),
    Option(
        ("--with-domu",),
        "a guest beside the dom0: FILE holds IMAGE and options of `run` as one would type them, lines as one likes, "
        "# before a comment; its console is --console WHERE, none unless given",
        Takes.PATHS, metavar="FILE", default=(), use=_RUN_ALONE,
    ),
    Option(
        (), "a vmlinux, bzImage or other ELF image with a PVH entry (default: the running kernel's in /boot)",
        Takes.PATH, (Sets(Of.DOMAIN, "image", _image),), metavar="IMAGE",
    ),
    Option(
        ("--initrd",), "the initramfs (default for Linux: a shell, made of the host's busybox)",
        Takes.PATH, (Sets(Of.DOMAIN, "initrd", _path),), metavar="FILE", exclusive="initrd", use=_EVERYWHERE,
    ),
    Option(
        ("--modules",),
        "the kernel's modules, for drivers in the default initrd (default: where the image's package has them)",
        Takes.PATH, (Sets(Of.START, "modules", _modules),), metavar="DIR", use=_EVERYWHERE,
    ),
    Option(
        ("--no-initrd",), "start Linux without an initramfs",
        Takes.NOTHING, (Sets(Of.START, "default_initrd", lambda without: not without),), exclusive="initrd",
    ),
    Option(
        ("--exec",), "run a shell command in the guest instead, and return its exit status",
        Takes.TEXT, (Sets(Of.START, "command"),), metavar="CMD", exclusive="initrd",
    ),
    Option(
        ("--append",), "the kernel command line; for a Linux kernel, console=hvc0 is put first if no console is named",
        Takes.TEXT, (Sets(Of.DOMAIN, "command_line"),), default="", metavar="TEXT", use=_EVERYWHERE,
    ),
    Option(
        ("-m", "--memory"), "RAM: 512 or 512M, 2G (default 512M)",
        Takes.TEXT, (Sets(Of.DOMAIN, "memory_bytes", parse_size),), default="512M", metavar="SIZE", use=_EVERYWHERE,
    ),
    Option(
        ("-c", "--vcpus"), "virtual CPUs (default 1)",
        Takes.INT, (Sets(Of.DOMAIN, "vcpus"),), default=1, metavar="N", use=_EVERYWHERE,
    ),
    Option(
        ("--max-vcpus",), "how many `pyvmm set-vcpus` may plug in",
        Takes.INT, (Sets(Of.DOMAIN, "max_vcpus"),), metavar="N", use=_EVERYWHERE,
    ),
    *(
        Option(
            (f"--{name}",), row.help, Takes.MANY, _devices(name),
            default=(), metavar=row.metavar, use=_EVERYWHERE, argument=f"{name}s",
        )
        for name, row in KINDS.items()
    ),
    Option(
        ("--root",), "use the host's own root, read-only, as the guest's, for --exec or a shell",
        Takes.TEXT,
        (
            Sets(Of.DOMAIN, "devices", lambda root: parse_specs("share", ("/,ro,tag=host",) if root else ())),
            Sets(Of.START, "host_root", lambda root: root is not None),
        ),
        choices=("host",),
    ),
    Option(
        ("--name",), "the guest's name, for the other commands (default guest-PID)",
        Takes.TEXT, (Sets(Of.DOMAIN, "name", lambda name: name or default_name()),), use=_EVERYWHERE,
    ),
    Option(
        ("--console",), f"the PV console: {FORMS}",
        Takes.TEXT, (Sets(Of.DOMAIN, "console"),), default="stdio", metavar="WHERE",
    ),
    Option(
        ("--serial",), "a 16550 on COM1: the same places (default none)",
        Takes.TEXT, (Sets(Of.DOMAIN, "serial"),), default="none", metavar="WHERE",
    ),
    Option(
        ("--on-reboot",), "start the guest again, or end with status 0 (default: restart; exit with --exec)",
        Takes.TEXT, (Sets(Of.RUN, "on_reboot"),), choices=("restart", "exit"), use=_RUN_ALONE,
    ),
    Option(
        ("--transport",), "how hypercalls leave the guest (`pyvmm doctor IMAGE` says what auto takes)",
        Takes.TEXT, (Sets(Of.DOMAIN, "transport", _transport),),
        default="auto", choices=("auto", *Transport), use=_EVERYWHERE,
    ),
    Option(
        ("--no-kvm-xen",), "do without KVM_XEN, as on a host that has not got it",
        Takes.NOTHING, (Sets(Of.DOMAIN, "kvm_xen", lambda without: not without),), use=_EVERYWHERE, argument="kvm_xen",
    ),
    Option(
        ("--xenstore",),
        "serve the guest's xenstore on a Unix socket; a dom0, which runs xenstored itself unless this is given, gets"
        " pyvmm's, without a socket for `internal`",
        Takes.PATH, (Sets(Of.RUN, "xenstore"),), metavar="PATH", use=_RUN_ALONE,
    ),
    Option(
        ("--trace",),
        "print hypercalls, events, xenstore messages and other exits as they happen, like strace; FILTER "
        "(--trace=...) is names and patterns between commas, `!` before what is not wanted, vcpu=N, failed",
        Takes.OPTIONAL, (Sets(Of.OBSERVE, "trace"),), metavar="FILTER", group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--trace-file",), "to a file instead of standard error",
        Takes.PATH, (Sets(Of.OBSERVE, "trace_file"),), metavar="FILE", group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--trace-format",), "how a record is written",
        Takes.TEXT, (Sets(Of.OBSERVE, "trace_format"),),
        default="text", choices=("text", "jsonl", "perfetto"), group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--symbols",), "a vmlinux, System.map or /proc/kallsyms to name the trace's addresses",
        Takes.PATH, (Sets(Of.OBSERVE, "symbols"),), metavar="FILE", group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--gdb",),
        "let GDB attach (`target remote`) at PORT, ADDRESS:PORT or unix:PATH; wait: the guest starts when GDB says so",
        Takes.TEXT, (Sets(Of.START, "gdb"),), metavar="WHERE[,wait]", group=_LOOKING_ON,
    ),
    Option(
        ("--timeline",), "write an HTML page: phases, what happened when, the slowest gaps",
        Takes.PATH, (Sets(Of.OBSERVE, "timeline"),), metavar="FILE", group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--stats",), "at the end, count hypercalls, exits, events and devices",
        Takes.NOTHING, (Sets(Of.OBSERVE, "stats"),), group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--fault",),
        "have something go wrong: fail:NAME[,errno=ENOMEM], delay:NAME[,seconds=S], corrupt:NAME, drop:EVENT; "
        "each with every=N, at=N, probability=P, times=N",
        Takes.MANY, (Sets(Of.OBSERVE, "faults"),), default=(), metavar="FAULT", group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--fault-seed",), "for what has a probability (default 0)",
        Takes.INT, (Sets(Of.OBSERVE, "seed"),), default=0, metavar="N", group=_LOOKING_ON, use=_RUN_ALONE,
    ),
    Option(
        ("--timeout",), "stop the guest after this long",
        Takes.FLOAT, (Sets(Of.RUN, "timeout_s", _timeout),), metavar="SECONDS", use=_RUN_ALONE,
    ),
    Option(
        ("--xen-version",), "the Xen that the guest is shown",
        Takes.TEXT, (Sets(Of.DOMAIN, "xen_version", parse_xen_version),),
        default="4.17.7", metavar="X.Y.Z", use=_EVERYWHERE,
    ),
    Option(("--log-level",), "the least that is logged", Takes.TEXT, default="warning", choices=log.LEVELS, use=_RUN_ALONE),
    Option(("--log-json",), "log lines as JSON", Takes.NOTHING, use=_RUN_ALONE),
]  # fmt: skip


def default_of(option: Option) -> Any:
    """What it has where it is not given."""
    return False if option.takes is Takes.NOTHING else option.default


def collect(values: Mapping[str, Any], of: Of, use: For) -> dict[str, Any]:
    """The fields of one kind of object, from parsed values by name; what is missing has its default.  UsageError."""
    found: dict[str, Any] = {}
    for option in OPTIONS:
        if use not in option.use:
            continue
        for sets in option.sets:
            if sets.of is of:
                value = sets.convert(values.get(option.name, default_of(option)))
                found[sets.field] = found.get(sets.field, ()) + value if sets.field in JOINED else value
    return found


def keywords(use: For = For.GUEST) -> dict[str, Option]:
    """The options that are arguments of `vmm.Guest`, by their names there."""
    return {option.keyword: option for option in OPTIONS if use in option.use}


def from_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parsed values from `vmm.Guest`'s arguments.  TypeError for one that there is not."""
    known = keywords()
    unknown = given.keys() - known.keys()
    if unknown:
        raise TypeError(f"vmm.Guest has no argument {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    return {
        known[keyword].name: not value if known[keyword].name == f"no_{keyword}" else value
        for keyword, value in given.items()
    }


def refuse(given: Iterable[str], use: For, whose: str) -> None:
    """UsageError for the first option of a command line that is not for such a user."""
    known = {flag: option for option in OPTIONS for flag in option.flags}
    for word in given:
        option = known.get(word.partition("=")[0])
        if option is not None and use not in option.use:
            raise UsageError(f"{option.flags[-1]} is not for {whose}; leave it out")
