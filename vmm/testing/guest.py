"""A guest as an object: started, spoken to, looked into, stopped.

with vmm.Guest("vmlinux", vcpus=2) as guest:
    assert guest.run("nproc").stdout == "2\\n"
    assert not guest.hypercalls.filter("grant_table_op,failed")
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from vmm.config.domain import DomainConfig
from vmm.config.options import For, Of, collect, from_keywords
from vmm.errors import GuestError
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.machine.lifecycle import Outcome
from vmm.observe.faults import Fault, Injected, Injector
from vmm.observe.trace.symbols import load_symbols
from vmm.observe.trace.tracer import Tracer
from vmm.observe.trace.writers import line
from vmm.testing.agent import Agent
from vmm.testing.console import GuestConsole
from vmm.testing.views import GuestRam, GuestVcpu, GuestXenstore, Hypercalls, Records
from vmm.toolstack.build import build
from vmm.toolstack.lifecycle import ask
from vmm.toolstack.prepare import Start, prepare


class Result(NamedTuple):
    """What a command printed, and its exit status."""

    stdout: str
    status: int
    stderr: str


class Guest:
    """One guest, from its start (`start`, or entering the context) to its end.  For one thread at a time.

    The options are those of `pyvmm run` by name, as the table `vmm.config.options` has them: `memory`, `vcpus`, `disks`,
    `append`...  `trace=False` records nothing: hypercalls may then be carried out in the kernel, as fast as they can be.
    """

    def __init__(
        self,
        kernel: str | Path | None = None,
        *,
        symbols: str | Path | None = None,
        trace: bool = True,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        timeout: float = 120,
        **options: Any,
    ) -> None:
        """`timeout` is how long the guest may take for anything that is waited for, seconds, unless a call says otherwise.

        PyvmmError where what is asked for cannot be had, TypeError for an option that there is not.
        """
        self.timeout = timeout
        self._observed = trace or bool(faults)
        values = {"image": kernel, **from_keywords({"name": "guest", **options})}
        config = DomainConfig(**collect(values, Of.DOMAIN, For.RUN)).checked()
        self._prepared = prepare(config, Start(**{**collect(values, Of.START, For.RUN), "agent": True}))
        self._domain: Domain | None = None
        self._hypervisor: Hypervisor | None = None
        self._system: System | None = None
        self._closed = False
        self._lock = threading.Lock()
        self.records = Records()
        """Everything that was traced: hypercalls, events, xenstore messages and exits."""
        self.hypercalls = Hypercalls(self.records)
        self._tracer = Tracer([self.records] if trace else [])
        self._injector = Injector(list(faults), seed)
        self._symbols = load_symbols(Path(symbols)) if symbols is not None else None
        self.console = GuestConsole(lambda data: self.domain.console.type(data), self._how_it_ended)
        self._agent = Agent(self._how_it_ended)
        self.memory = GuestRam(lambda: self.domain, self._symbols)

    # ------------------------------------------------------------------------------ start and end

    def start(self) -> Self:
        """Let it run.  PyvmmError."""
        if self._domain is not None or self._closed:
            raise GuestError("a Guest starts once; make another")
        self._system = System()
        try:
            self._hypervisor = Hypervisor(self._system)
            prepared = self._prepared
            domain = build(
                self._hypervisor, prepared.config, prepared.image, prepared.modules, self.console, observed=self._observed
            )
            prepared.modules.clear()
            if self._observed:
                self._injector.attach(domain)
                self._tracer.attach(domain)
            if prepared.own_initrd:
                assert domain.devices is not None
                domain.devices.attach_backend(self._agent.channel)
            self._domain = domain
            domain.unpause()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop it at once, if it runs, and let go of everything.  Transcript and records stay."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._prepared.image.close()
        if self._hypervisor is not None:
            self._hypervisor.close()
        if self._system is not None:
            self._system.close()
        self._tracer.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def domain(self) -> Domain:
        """The domain behind it, for what this class has no method for.  GuestError before the start and after the end."""
        if self._domain is None or self._closed:
            raise GuestError("the guest has not been started" if not self._closed else "the guest has been closed")
        return self._domain

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, None while it runs."""
        return self._domain.outcome if self._domain is not None else None

    def _how_it_ended(self) -> str | None:
        if self.outcome is not None:
            return self.outcome.text or self.outcome.reason.name
        return "it was closed" if self._closed else None

    def wait_shutdown(self, timeout: float | None = None) -> Outcome:
        """Wait until it ends: how.  GuestError where it does not."""
        limit = self.timeout if timeout is None else timeout
        outcome = self.domain.wait(limit)
        if outcome is None:
            raise GuestError(f"the guest still runs after {limit:g} s")
        self.domain.stop()
        return outcome

    def shutdown(self, timeout: float | None = None) -> Outcome:
        """Ask its kernel to power off, as `xl shutdown` does, and wait for that.  GuestError."""
        if self._hypervisor is None or not ask(self._hypervisor, self.domain, "poweroff"):
            raise GuestError("the guest's kernel does not listen for requests to shut down")
        return self.wait_shutdown(timeout)

    # ---------------------------------------------------------------------------- talking to it

    def run(self, command: str, timeout: float | None = None, *, check: bool = False) -> Result:
        """Run a shell command in it, without input.  GuestError, with `check` also where the command fails."""
        status, out, err = self._agent_or_error().run(command, self.timeout if timeout is None else timeout)
        result = Result(out.decode("utf-8", "replace"), status, err.decode("utf-8", "replace"))
        if check and status:
            raise GuestError(f"{command!r} failed in the guest with status {status}: {result.stderr or result.stdout}")
        return result

    def push(self, source: str | Path | bytes, path: str, *, mode: int = 0o644, timeout: float | None = None) -> None:
        """Copy a file of the host's, or bytes, into the guest (in its initramfs).  GuestError."""
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        self._agent_or_error().push(path, data, mode, self.timeout if timeout is None else timeout)

    def pull(self, path: str, target: str | Path | None = None, timeout: float | None = None) -> bytes:
        """A file of the guest's: its bytes, also written to `target`.  GuestError."""
        data = self._agent_or_error().pull(path, self.timeout if timeout is None else timeout)
        if target is not None:
            Path(target).write_bytes(data)
        return data

    def _agent_or_error(self) -> Agent:
        if not self._prepared.own_initrd:
            raise GuestError("this guest has an initrd of its own, or is no Linux, so nothing in it takes commands")
        return self._agent

    # ---------------------------------------------------------------------------- looking into it

    @property
    def xenstore(self) -> GuestXenstore:
        """Its xenstore."""
        if self._hypervisor is None:
            raise GuestError("the guest has not been started")
        return GuestXenstore(self._hypervisor, lambda: self.domain)

    @property
    def vcpus(self) -> list[GuestVcpu]:
        """Its vCPUs."""
        return [GuestVcpu(vcpu) for vcpu in self.domain.vcpus]

    @property
    def injected(self) -> list[Injected]:
        """The faults that have happened."""
        return list(self._injector.injected)

    def pause(self) -> None:
        """Stop all vCPUs; its clock and devices go on."""
        self.domain.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self.domain.unpause()

    def inject_nmi(self, vcpu: int = 0) -> None:
        """A non-maskable interrupt for one vCPU."""
        self.vcpus[vcpu].inject_nmi()

    def trace_text(self, last: int = 200) -> str:
        """The last records as `pyvmm run --trace` prints them."""
        return "\n".join(line(record, self._symbols) for record in self.records.snapshot()[-last:])
