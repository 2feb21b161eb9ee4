"""`pyvmm run`: one guest from its files to its exit status."""

import gc
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from vmm.boot.image import load_image, open_file
from vmm.boot.pvh import Module
from vmm.config import DomainConfig
from vmm.devices.console import ConsoleSink
from vmm.devices.terminal import Terminal
from vmm.domain import Domain, Outcome
from vmm.errors import ExitStatus
from vmm.hypervisor import Hypervisor
from vmm.kvm import System
from vmm.xenabi.constants import ShutdownReason


def run_guest(config: DomainConfig, timeout_s: float | None) -> int:
    """Start the guest that `config` describes and wait for its end: the exit status.  PyvmmError."""
    image = load_image(config.image)
    modules = [_module(config.initrd, "initrd")] if config.initrd else []
    system = System()
    hypervisor = Hypervisor(system)
    sink = ConsoleSink.open(config.console)
    previous = signal.signal(signal.SIGTERM, _terminate)
    terminal: Terminal | None = None
    try:
        domain = hypervisor.create_domain(config, image, modules, sink)
        modules.clear()
        gc.freeze()
        gc.enable()
        left = threading.Event()

        def leave() -> None:
            left.set()
            domain.interrupt()

        if config.console == "stdio":
            terminal = Terminal(0, domain.type, leave)
        domain.start()
        if terminal is not None:
            terminal.start()
        outcome = domain.wait(timeout_s)
        domain.stop()
        if left.is_set() and outcome is None:
            return ExitStatus.INTERRUPTED
        if outcome is None:
            _say(domain, f"the guest was stopped after {timeout_s:g} s (--timeout)")
            return ExitStatus.TIMED_OUT
        return _report(domain, outcome)
    finally:
        if terminal is not None:
            terminal.restore()
        hypervisor.close()
        sink.close()
        system.close()
        signal.signal(signal.SIGTERM, previous)


def _module(path: Path, what: str) -> Module:
    return Module(f"the {what} {path}", memoryview(open_file(path, what)))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(domain: Domain, outcome: Outcome) -> int:
    if outcome.reason in (ShutdownReason.poweroff, ShutdownReason.reboot):
        return ExitStatus.POWERED_OFF
    if outcome.reason is ShutdownReason.suspend:
        _say(domain, "the guest asked to be suspended, which pyvmm cannot do yet")
        return ExitStatus.FAILED
    _say(domain, f"the guest crashed: {outcome.text or outcome.reason.name}", *outcome.report)
    return ExitStatus.CRASHED


def _say(domain: Domain, *lines: str) -> None:
    why = domain.why_no_hypercalls()
    for index, line in enumerate([*lines, why] if why else lines):
        print(f"pyvmm: {line}" if index == 0 or line is why else f"  {line}", file=sys.stderr)
