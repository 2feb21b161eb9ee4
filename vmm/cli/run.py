"""`pyvmm run`: one guest from its files to its exit status."""

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.image import Loading
from vmm.config.domain import DomainConfig
from vmm.devices.chips.exit_port import ExitPort
from vmm.errors import ExitStatus, UsageError
from vmm.host import log
from vmm.host.chardev import Chardev, Tee
from vmm.host.consoles import open_chardev
from vmm.kvm import System
from vmm.machine.domain import Domain, Outcome
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack.prepare import Prepared, Start, prepare
from vmm.xenabi.constants import ShutdownReason

if TYPE_CHECKING:
    from vmm.control.server import ControlServer
    from vmm.observe.gdb.server import GdbServer
    from vmm.observe.session import Observation, Observer

GRACE_S = 20


class Request(NamedTuple):
    """What `pyvmm run` is asked for beside the domain's own configuration."""

    start: Start = Start()
    timeout_s: float | None = None
    restart: bool = True
    xenstore: Path | None = None
    observation: "Observation | None" = None
    gdb: str | None = None
    gdb_wait: bool = False
    beside: tuple[tuple[DomainConfig, Start], ...] = ()
    """Guests that run beside a dom0, for as long as that does."""


def run_guest(config: DomainConfig, request: Request, loading: Loading) -> int:
    """Start the guest that `config` describes, its image being on its way, and wait for its end: the exit status.

    PyvmmError.
    """
    if config.console == config.serial == "stdio":
        raise UsageError("--console and --serial cannot both be stdio; give --console another place, or none")
    config = config._replace(observed=request.observation is not None)
    prepared = prepare(config, request.start, loading)
    runner: _Runner | None = None
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        runner = _Runner(config, request)
        return runner.run(prepared)
    finally:
        if runner is not None:
            runner.close()
        signal.signal(signal.SIGTERM, previous)


class _Runner:
    """One guest and its restarts.  Owned by the main thread."""

    def __init__(self, config: DomainConfig, request: Request) -> None:
        self._config = config
        self._request = request
        self._deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        self._left = threading.Event()
        self._own_initrd = False
        self._domain: Domain | None = None
        self._beside: list[Domain] = []
        self._system = System()
        self._hypervisor = Hypervisor(self._system)
        self._chardevs: list[Chardev] = []
        self._control: ControlServer | None = None
        self._destroyed = threading.Event()
        self._observer: Observer | None = None
        self._gdb: GdbServer | None = None
        try:
            if request.observation is not None:
                from vmm.observe import session as observe  # only whoever looks on pays for it

                self._observer = observe.Observer(request.observation)
            if request.xenstore is not None:
                self._hypervisor.xenstore.listen(request.xenstore)
            self._console = self._open(config.console, "--console")
            self._tee = Tee(self._console)
            self._serial = None if config.serial == "none" else self._open(config.serial, "--serial")
        except BaseException:
            self.close()
            raise

    def _open(self, place: str, option: str) -> Chardev:
        opened = open_chardev(place, option)
        self._chardevs.append(opened)
        return opened

    def run(self, prepared: Prepared | None) -> int:
        """To the end of the last guest: the exit status."""
        while True:
            domain = self._domain = self._create(prepared or prepare(self._config, self._request.start))
            prepared = None
            try:
                status = self._run_domain(domain)
            finally:
                for each in [*self._beside, domain]:
                    self._hypervisor.destroy_domain(each)
            if status is not None:
                return status

    def _create(self, prepared: Prepared) -> Domain:
        self._own_initrd = prepared.own_initrd
        domain = self._hypervisor.create_domain(prepared.config, prepared.image, prepared.modules, self._tee, self._serial)
        if self._observer is not None:
            self._observer.attach(self._hypervisor, domain, self._tee)
        prepared.modules.clear()
        self._create_beside()
        gc.freeze()
        gc.enable()
        return domain

    def _create_beside(self) -> None:
        self._beside = []
        for config, start in self._request.beside:
            console = self._open(config.console, "--with-domu: --console")
            prepared = prepare(config, start)
            domain = self._hypervisor.create_domain(prepared.config, prepared.image, prepared.modules, console)
            self._beside.append(domain)

    def _run_domain(self, domain: Domain) -> int | None:
        """The exit status, or None where the guest is to be started again."""
        exit_port = ExitPort()
        if self._request.start.command is not None:
            domain.ports.own(exit_port, *exit_port.ranges)

        def offer(data: bytes) -> None:
            if data:
                domain.type(data)
            elif self._own_initrd:
                domain.end_input()

        if self._request.gdb is not None and self._request.gdb_wait:
            for vcpu in domain.vcpus:
                vcpu.hold()
        domain.start()
        for other in self._beside:
            other.start()
        self._debug(domain)
        self._control_by_socket()
        if self._request.start.command is None or os.isatty(0):
            self._console.start(offer, self._leave)
        if self._serial is not None:
            self._serial.start(domain.type_serial, self._leave)
        try:
            outcome = domain.wait(self._remaining())
        except KeyboardInterrupt:
            self._ask_to_end(domain)
            raise
        if outcome is None:
            self._discard_output()
        self._close_debugger()
        if self._observer is not None:
            self._observer.ended(domain)
        domain.stop()
        if outcome is None and self._destroyed.is_set():
            _say(domain, "the guest was destroyed")
            return ExitStatus.INTERRUPTED
        if outcome is None and self._left.is_set():
            return ExitStatus.INTERRUPTED
        if outcome is None:
            _say(domain, f"the guest was stopped after {self._request.timeout_s:g} s (--timeout)")
            return ExitStatus.TIMED_OUT
        if outcome.reason is ShutdownReason.reboot and self._request.restart:
            return None
        return _report(domain, outcome, exit_port.status, self._request.start.command)

    def _debug(self, domain: Domain) -> None:
        if self._request.gdb is None:
            return
        from vmm.observe.gdb.server import GdbServer

        self._gdb = GdbServer(self._request.gdb, domain, self._destroy)
        if self._request.gdb_wait:
            print(f"pyvmm: the guest waits for GDB at {self._request.gdb}", file=sys.stderr)

    def _close_debugger(self) -> None:
        if self._gdb is not None:
            self._gdb.close()
            self._gdb = None

    def _control_by_socket(self) -> None:
        """Take requests from other processes, from now on: what that needs is imported beside the running guest."""
        if self._control is not None:
            return
        from vmm.control.actions import Actions
        from vmm.control.server import ControlServer

        def current() -> Domain:
            assert self._domain is not None
            return self._domain

        actions = Actions(self._hypervisor, current, self._destroy).table()
        try:
            self._control = ControlServer(self._config.name, actions, self._tee, lambda data: current().type(data))
        except OSError as error:
            log.get(__name__).warning("no other command can reach this guest", reason=str(error))

    def _destroy(self) -> None:
        self._destroyed.set()
        if self._domain is not None:
            self._domain.interrupt()

    def _ask_to_end(self, domain: Domain) -> None:
        """Give the guest's kernel some time to shut down; a second interrupt ends that too."""
        if domain.outcome is None and self._hypervisor.ask(domain, "poweroff"):
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
        if self._domain is not None:
            self._domain.interrupt()

    def _discard_output(self) -> None:
        # A reader that does not read must not keep the guest's threads from ending.
        for chardev in self._chardevs:
            chardev.discard()

    def close(self) -> None:
        self._discard_output()
        self._close_debugger()
        if self._control is not None:
            self._control.close()
        self._hypervisor.close()
        if self._observer is not None:
            self._observer.close()
        for chardev in self._chardevs:
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


def _say(domain: Domain, *lines: str) -> None:
    why = domain.why_no_hypercalls()
    for index, line in enumerate([*lines, why] if why else lines):
        print(f"pyvmm: {line}" if index == 0 or line is why else f"  {line}", file=sys.stderr)
