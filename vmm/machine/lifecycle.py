"""The life of a domain, and that of a vCPU: which states there are, what leads from one to the next, who may ask for it.

Every transition stands in a table here, and each life changes under a lock of its own.
"""

import threading
from enum import Enum, Flag, auto
from typing import NamedTuple

from vmm.errors import PyvmmError
from vmm.xenabi.constants import ShutdownReason


class Outcome(NamedTuple):
    """How a domain ended: the reason, and for a crash a sentence and a report."""

    reason: ShutdownReason
    text: str = ""
    report: tuple[str, ...] = ()


class Life(Enum):
    """Where a domain is in its life."""

    CREATED = "created"
    """It has a domid and limits, and has never run."""
    PAUSED = "paused"
    RUNNING = "running"
    SUSPENDED = "suspended"
    """Its kernel has asked to be suspended: it runs no more, and could go on."""
    SHUT_DOWN = "shut down"
    DYING = "dying"
    """What it holds is being released."""
    GONE = "gone"


class Verb(Enum):
    """What somebody asks of a domain."""

    PAUSE = "pause"
    UNPAUSE = "unpause"
    SUSPEND = "suspend"
    SHUT_DOWN = "shut down"
    DESTROY = "destroy"
    RELEASED = "release"
    """All that it held has been released."""


class By(Flag):
    """Who asks."""

    GUEST = auto()
    """The domain's own kernel, or a fault of it."""
    TOOLSTACK = auto()
    """dom0, or pyvmm's own commands."""
    HYPERVISOR = auto()


ASKERS: dict[Verb, By] = {
    Verb.PAUSE: By.TOOLSTACK,
    Verb.UNPAUSE: By.TOOLSTACK,
    Verb.SUSPEND: By.GUEST,
    Verb.SHUT_DOWN: By.GUEST | By.TOOLSTACK | By.HYPERVISOR,
    Verb.DESTROY: By.TOOLSTACK | By.HYPERVISOR,
    Verb.RELEASED: By.HYPERVISOR,
}

TRANSITIONS: dict[tuple[Life, Verb], Life] = {
    (Life.CREATED, Verb.PAUSE): Life.CREATED,
    (Life.CREATED, Verb.UNPAUSE): Life.RUNNING,
    (Life.RUNNING, Verb.PAUSE): Life.PAUSED,
    (Life.PAUSED, Verb.PAUSE): Life.PAUSED,
    (Life.PAUSED, Verb.UNPAUSE): Life.RUNNING,
    (Life.RUNNING, Verb.SUSPEND): Life.SUSPENDED,
    (Life.PAUSED, Verb.SUSPEND): Life.SUSPENDED,
    (Life.CREATED, Verb.SHUT_DOWN): Life.SHUT_DOWN,
    (Life.RUNNING, Verb.SHUT_DOWN): Life.SHUT_DOWN,
    (Life.PAUSED, Verb.SHUT_DOWN): Life.SHUT_DOWN,
    (Life.SUSPENDED, Verb.SHUT_DOWN): Life.SHUT_DOWN,
    **{(life, verb): life for life in (Life.SUSPENDED, Life.SHUT_DOWN) for verb in (Verb.PAUSE, Verb.UNPAUSE)},
    **{(life, Verb.DESTROY): Life.DYING for life in Life if life not in (Life.DYING, Life.GONE)},
    (Life.DYING, Verb.RELEASED): Life.GONE,
}
"""A pause counts: `UNPAUSE` leads on only once every pause has been taken back, the one of its creation among them."""


class WrongLife(PyvmmError):
    """A domain is not in a state in which that can be asked of it."""


class DomainLife:
    """One domain's state, its pauses, and how it ended.  `_changed` guards them; from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._interrupted = False
        self.state = Life.CREATED
        self.pauses = 1
        """How many pauses have to be taken back before it runs."""
        self.outcome: Outcome | None = None
        """How it ended; None while it may still run."""

    def ask(self, verb: Verb, by: By = By.TOOLSTACK) -> bool:
        """Do what is asked: whether that changed the state.  WrongLife."""
        with self._changed:
            after = TRANSITIONS.get((self.state, verb))
            if after is None or not by & ASKERS[verb] or (verb is Verb.UNPAUSE and not self.pauses):
                raise WrongLife(f"a domain that is {self.state.value} cannot be asked to {verb.value}")
            if verb is Verb.PAUSE:
                self.pauses += 1
            elif verb is Verb.UNPAUSE:
                self.pauses -= 1
                if self.pauses:
                    return False
            before, self.state = self.state, after
            self._changed.notify_all()
            return before is not after

    def end(self, outcome: Outcome, by: By = By.GUEST) -> bool:
        """The domain runs no more: False where it had ended before."""
        with self._changed:
            if self.outcome is not None or self.state in (Life.DYING, Life.GONE):
                return False
            self.outcome = outcome
        self.ask(Verb.SUSPEND if outcome.reason is ShutdownReason.suspend else Verb.SHUT_DOWN, by)
        return True

    @property
    def over(self) -> bool:
        """Whether it has ended, or is being released."""
        return self.outcome is not None or self.state in (Life.DYING, Life.GONE)

    def wait(self, timeout_s: float | None = None) -> Outcome | None:
        """How it ended; None where it has not within the timeout, or where `interrupt` came first."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or self._interrupted, timeout_s)
            return self.outcome

    def interrupt(self) -> None:
        """Make every `wait` return: somebody has left the guest."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()


class VcpuPhase(Enum):
    """Where a vCPU is in its life."""

    EMPTY = "empty"
    """It has no state to start in: for INIT and SIPI, or a hypercall, to give it one."""
    READY = "ready"
    """It has one, and waits to be started."""
    UP = "up"
    DOWN = "down"
    """Stopped by its own guest, to go on where it was."""
    STOPPED = "stopped"
    """For good."""


class Step(Enum):
    """What happens to a vCPU."""

    INITIALISE = "initialise"
    START = "start"
    """VCPUOP_up."""
    SIPI = "start-up interrupt"
    DOWN = "down"
    STOP = "stop"


STEPS: dict[tuple[VcpuPhase, Step], VcpuPhase] = {
    (VcpuPhase.EMPTY, Step.INITIALISE): VcpuPhase.READY,
    (VcpuPhase.READY, Step.START): VcpuPhase.UP,
    (VcpuPhase.UP, Step.START): VcpuPhase.UP,
    (VcpuPhase.DOWN, Step.START): VcpuPhase.UP,
    (VcpuPhase.EMPTY, Step.SIPI): VcpuPhase.UP,
    (VcpuPhase.READY, Step.SIPI): VcpuPhase.UP,
    (VcpuPhase.UP, Step.SIPI): VcpuPhase.UP,
    (VcpuPhase.UP, Step.DOWN): VcpuPhase.DOWN,
    **{(phase, Step.DOWN): phase for phase in (VcpuPhase.EMPTY, VcpuPhase.READY, VcpuPhase.DOWN)},
    **{(phase, Step.STOP): VcpuPhase.STOPPED for phase in VcpuPhase},
}


class Hold(Flag):
    """Why a vCPU that could run does not."""

    DOMAIN = auto()
    """Its domain is paused."""
    DEBUGGER = auto()


class VcpuLife:
    """One vCPU's phase, and who holds it.  `_lock` guards both; `runs` is for its thread to look at before each entry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phase = VcpuPhase.EMPTY
        self.held = Hold(0)
        self.runs = True
        """Whether it may enter KVM, be it to wait there for its start-up interrupt."""

    def take(self, step: Step) -> VcpuPhase | None:
        """Go on: the phase before; None where a vCPU in that phase does not go there."""
        with self._lock:
            before, after = self.phase, STEPS.get((self.phase, step))
            if after is None:
                return None
            self.phase = after
            self._update()
            return before

    def hold(self, why: Hold) -> None:
        """Keep it from running."""
        with self._lock:
            self.held |= why
            self._update()

    def let_go(self, why: Hold) -> None:
        """No longer for this reason."""
        with self._lock:
            self.held &= ~why
            self._update()

    def _update(self) -> None:
        self.runs = not self.held and self.phase not in (VcpuPhase.DOWN, VcpuPhase.STOPPED)
