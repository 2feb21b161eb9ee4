"""`pyvmm run`: one guest from its files to its exit status."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.image import Loading
from vmm.config.domain import DomainConfig, default_name
from vmm.errors import ExitStatus, PyvmmError, UsageError
from vmm.host import log
from vmm.host.chardev import Chardev, Tee
from vmm.host.consoles import open_chardev
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.machine.lifecycle import Hold, Outcome
from vmm.toolstack.build import build
from vmm.toolstack.prepare import Prepared, Start, prepare
from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.values import Domid

if TYPE_CHECKING:
    from vmm.control.actions import Actions, Running
    from vmm.control.server import ControlServer
    from vmm.observe.gdb.server import GdbServer
    from vmm.observe.session import Observation, Observers

GRACE_S = 20


class Beside(NamedTuple):
    """A guest that runs beside a dom0, for as long as that does."""

    config: DomainConfig
    start: Start


class Request(NamedTuple):
    """What `pyvmm run` is asked for beside the domain's own configuration."""

    start: Start = Start()
    timeout_s: float | None = None
    restart: bool = True
    xenstore: Path | None = None
    beside: tuple[Beside, ...] = ()


def run_guest(config: DomainConfig, request: Request, loading: Loading, observation: "Observation | None" = None) -> int:
    """Start the guest that `config` describes, its image being on its way, and wait for its end: the exit status.

    Every guest of the run is looked on at as `observation` says.  PyvmmError.
    """
    if config.console == config.serial == "stdio":
        raise UsageError("--console and --serial cannot both be stdio; give --console another place, or none")
    names = [config.name, *(beside.config.name for beside in request.beside)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two guests are both called {name!r}; give one of them another --name")
    if config.name != default_name():  # which nobody else has
        from vmm.control.places import check_free

        check_free(config.name)
    prepared = prepare(config, request.start, loading)
    runner: _Runner | None = None
    previous = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        runner = _Runner(config, request, observation)
        return runner.run(prepared)
    finally:
        if runner is not None:
            runner.close()
        for number, before in previous.items():
            signal.signal(number, before)


class _Place:
    """Where the consoles of one guest lead to, over all of its restarts."""

    def __init__(self, config: DomainConfig, option: str) -> None:
        self.console = open_chardev(config.console, f"{option}--console")
        self.tee = Tee(self.console)
        try:
            self.serial = None if config.serial == "none" else open_chardev(config.serial, f"{option}--serial")
        except BaseException:
            self.console.close()
            raise

    def start(self, guest: "_Guest", leave: Callable[[], None], *, console: bool) -> None:
        """Let what is typed come to a guest that runs."""

        def offer(data: bytes) -> None:
            if data:
                guest.domain.console.type(data)
            elif guest.own_initrd:
                guest.domain.console.end_input()

        if console:
            self.console.start(offer, leave)
        if self.serial is not None:
            self.serial.start(guest.domain.console.type_serial, leave)

    def each(self) -> list[Chardev]:
        return [self.console, *([] if self.serial is None else [self.serial])]


class _Guest(NamedTuple):
    """A guest that runs now."""

    domain: Domain
    config: DomainConfig
    place: _Place
    own_initrd: bool
    kernel_bits: int
    start: Start


class _Runner:
    """The guests of one run, and their restarts.  Owned by the main thread; the control socket's ask it, too."""

    def __init__(self, config: DomainConfig, request: Request, observation: "Observation | None") -> None:
        self._config = config
        self._request = request
        self._deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        self._left = threading.Event()
        self._destroyed = threading.Event()
        self._guests: list[_Guest] = []
        """The first one first; empty while they are being restarted."""
        self._system = System()
        self.hypervisor = Hypervisor(self._system)
        self._places: list[_Place] = []
        self._control: ControlServer | None = None
        self._observers: Observers | None = None
        self._debuggers: dict[Domid, GdbServer] = {}
        try:
            if observation is not None:
                from vmm.observe import session  # only whoever looks on pays for it

                self._observers = session.Observers(observation)
            if request.xenstore is not None:
                self.hypervisor.xenstore.listen(request.xenstore)
            self._places.append(_Place(config, ""))
            for beside in request.beside:
                self._places.append(_Place(beside.config, "--with-domu: "))
        except BaseException:
            self.close()
            raise

    def run(self, prepared: Prepared | None) -> int:
        """To the end of the last guest: the exit status."""
        while True:
            self._create(prepared or prepare(self._config, self._request.start))
            prepared = None
            try:
                status = self._run()
            finally:
                guests, self._guests = self._guests, []
                self._close_debuggers()
                for guest in reversed(guests):
                    self.hypervisor.destroy(guest.domain)
            if status is not None:
                return status

    def _create(self, prepared: Prepared) -> None:
        self._add(prepared, self._request.start, self._places[0])
        for beside, place in zip(self._request.beside, self._places[1:], strict=True):
            self._add(prepare(beside.config, beside.start), beside.start, place)
        gc.freeze()
        gc.enable()

    def _add(self, prepared: Prepared, start: Start, place: _Place) -> None:
        domain = build(
            self.hypervisor, prepared.config, prepared.image, prepared.modules, place.tee, place.serial,
            observed=self._observers is not None, shareable=bool(self._request.beside),
        )  # fmt: skip
        prepared.modules.clear()
        self._guests.append(_Guest(domain, prepared.config, place, prepared.own_initrd, prepared.image.bits, start))
        if self._observers is not None:
            self._observers.attach(domain, place.tee)

    def _run(self) -> int | None:
        """The exit status of the first guest, or None where it is to be started again."""
        first, request = self._guests[0], self._request
        exit_port = None
        for guest in self._guests:
            if guest.start.command is not None:
                from vmm.devices.chips.exit_port import ExitPort

                port = ExitPort()
                guest.domain.ports.own(port, *port.ranges)
                exit_port = port if guest is first else exit_port
            if guest.start.gdb is not None and guest.start.gdb.endswith(",wait"):
                for vcpu in guest.domain.vcpus:
                    vcpu.hold(Hold.DEBUGGER)
        for guest in self._guests:
            guest.domain.unpause()
        for guest in self._guests:
            self._debug(guest)
        self._control_by_socket()
        for guest in self._guests:
            typed = guest is not first or guest.start.command is None or os.isatty(0)
            guest.place.start(guest, self._leave, console=typed)
        domain = first.domain
        try:
            outcome = domain.wait(self._remaining())
        except KeyboardInterrupt:
            self._ask_to_end(domain)
            raise
        if outcome is None:
            self._discard_output()
        self._close_debuggers()
        if self._observers is not None:
            for guest in self._guests:
                self._observers.ended(guest.domain)
        domain.stop()
        if outcome is None and self._destroyed.is_set():
            _say(domain, "the guest was destroyed")
            return ExitStatus.INTERRUPTED
        if outcome is None and self._left.is_set():
            return ExitStatus.INTERRUPTED
        if outcome is None:
            _say(domain, f"the guest was stopped after {request.timeout_s:g} s (--timeout)", kvm_xen=self._config.kvm_xen)
            return ExitStatus.TIMED_OUT
        if outcome.reason is ShutdownReason.reboot and request.restart:
            return None
        return _report(domain, outcome, None if exit_port is None else exit_port.status, request.start.command)

    # ------------------------------------------------------------------- what others ask of the guests

    def _debug(self, guest: _Guest) -> None:
        if guest.start.gdb is None:
            return
        where = guest.start.gdb.removesuffix(",wait")
        self.debug(guest.domain, where)
        if where != guest.start.gdb:
            print(f"pyvmm: the guest waits for GDB at {where}", file=sys.stderr)

    def debug(self, domain: Domain, where: str) -> None:
        """Let GDB attach to one.  PyvmmError."""
        from vmm.observe.gdb.server import GdbServer

        if domain.domid in self._debuggers:
            raise PyvmmError(f"{domain.name} has a place where GDB may attach already")
        bits = next((guest.kernel_bits for guest in self._guests if guest.domain is domain), 64)
        self._debuggers[domain.domid] = GdbServer(where, domain, lambda: self.destroy(domain), bits)

    def _close_debuggers(self) -> None:
        while self._debuggers:
            self._debuggers.popitem()[1].close()

    def _control_by_socket(self) -> None:
        """Take requests from other processes, from now on: what that needs is imported beside the running guest."""
        if self._control is not None:
            return
        from vmm.control.server import ControlServer

        started_s = time.monotonic()

        def requests() -> "Actions":
            from vmm.control.actions import Actions

            return Actions(self, started_s)

        try:
            self._control = ControlServer(self._config.name, requests)
        except (OSError, PyvmmError) as error:
            log.get(__name__).warning("no other command can reach this guest", reason=str(error))

    def running(self) -> "list[Running]":
        """All guests of this process, the first one first."""
        from vmm.control.actions import Running

        return [Running(guest.domain, guest.config, guest.place.tee) for guest in self._guests]

    def destroy(self, domain: Domain) -> None:
        """End one at once; the first one's end is that of the run."""
        if self._guests and domain is self._guests[0].domain:
            self._destroyed.set()
            domain.interrupt()
        else:
            domain.crash("it was destroyed")

    def _ask_to_end(self, domain: Domain) -> None:
        """Give the guest's kernel some time to shut down; a second interrupt ends that too."""
        from vmm.toolstack.lifecycle import ask

        if domain.outcome is None and ask(self.hypervisor, domain, "poweroff"):
            print(
                f"pyvmm: asked the guest to power off; it has {GRACE_S} s, or until the next interrupt",
                file=sys.stderr,
            )
            domain.wait(GRACE_S)
        self._discard_output()

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def _leave(self) -> None:
        self._left.set()
        for guest in self._guests[:1]:
            guest.domain.interrupt()

    def _discard_output(self) -> None:
        # A reader that does not read must not keep the guests' threads from ending.
        for place in self._places:
            for chardev in place.each():
                chardev.discard()

    def close(self) -> None:
        """Let everything go."""
        self._discard_output()
        self._close_debuggers()
        if self._control is not None:
            self._control.close()
        self.hypervisor.close()
        if self._observers is not None:
            self._observers.close()
        for place in self._places:
            for chardev in place.each():
                chardev.close()
        self._system.close()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(domain: Domain, outcome: Outcome, command_status: int | None, command: str | None) -> int:
    if outcome.reason in (ShutdownReason.poweroff, ShutdownReason.reboot):
        if command is None:
            return ExitStatus.POWERED_OFF
        if command_status is not None:
            return command_status
        _say(domain, "the guest ended without saying how the command of --exec ended")
        return ExitStatus.FAILED
    if outcome.reason is ShutdownReason.suspend:
        _say(domain, "the guest asked to be suspended, which pyvmm cannot do yet")
        return ExitStatus.FAILED
    _say(domain, f"the guest crashed: {outcome.text or outcome.reason.name}", *outcome.report)
    return ExitStatus.CRASHED


def _say(domain: Domain, *lines: str, kvm_xen: bool = True) -> None:
    from vmm.toolstack.lifecycle import why_no_hypercalls

    why = why_no_hypercalls(domain, kvm_xen=kvm_xen)
    for index, line in enumerate([*lines, why] if why else lines):
        print(f"pyvmm: {line}" if index == 0 or line is why else f"  {line}", file=sys.stderr)
