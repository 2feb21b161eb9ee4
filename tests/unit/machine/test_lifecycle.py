"""The lives of domains and vCPUs."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.machine.lifecycle import (
    ASKERS,
    TRANSITIONS,
    By,
    DomainLife,
    Hold,
    Life,
    Outcome,
    Step,
    VcpuLife,
    VcpuPhase,
    Verb,
    WrongLife,
)
from vmm.xenabi.constants import ShutdownReason


def test_a_domain_runs_once_every_pause_is_taken_back() -> None:
    life = DomainLife()
    assert not life.ask(Verb.PAUSE)
    assert not life.ask(Verb.UNPAUSE)
    assert life.ask(Verb.UNPAUSE)
    assert life.state is Life.RUNNING
    with pytest.raises(WrongLife, match="a domain that is running cannot be asked to unpause"):
        life.ask(Verb.UNPAUSE)


@given(st.lists(st.tuples(st.sampled_from(Verb), st.sampled_from(By)), max_size=30))
def test_only_what_is_in_the_table_and_asked_by_whom_it_is_for_happens(steps: list[tuple[Verb, By]]) -> None:
    life = DomainLife()
    for verb, by in steps:
        before, pauses = life.state, life.pauses
        try:
            life.ask(verb, by)
        except WrongLife:
            assert (life.state, life.pauses) == (before, pauses)
        else:
            assert by & ASKERS[verb]
            assert life.state in (before, TRANSITIONS[before, verb])
    assert life.pauses >= 0


@pytest.mark.parametrize(
    ("reason", "state"), [(ShutdownReason.suspend, Life.SUSPENDED), (ShutdownReason.crash, Life.SHUT_DOWN)]
)
def test_a_domain_ends_once_and_who_waits_hears_how(reason: ShutdownReason, state: Life) -> None:
    life, heard = DomainLife(), []
    life.ask(Verb.UNPAUSE)
    waiting = threading.Thread(target=lambda: heard.append(life.wait(10)))
    waiting.start()
    assert life.end(Outcome(reason))
    assert not life.end(Outcome(ShutdownReason.poweroff))
    waiting.join()
    assert heard == [Outcome(reason)]
    assert (life.state, life.over) == (state, True)


def test_somebody_who_leaves_ends_the_waiting_and_not_the_domain() -> None:
    life = DomainLife()
    life.interrupt()
    assert life.wait(10) is None
    assert not life.over


@pytest.mark.parametrize("life", Life)
def test_every_life_leads_to_its_end(life: Life) -> None:
    reached, waiting = {life}, [life]
    while waiting:
        state = waiting.pop()
        for (before, _), after in TRANSITIONS.items():
            if before is state and after not in reached:
                reached.add(after)
                waiting.append(after)
    assert Life.GONE in reached


def test_a_vcpu_is_started_by_hypercall_or_by_interrupt() -> None:
    by_call, by_interrupt = VcpuLife(), VcpuLife()
    assert by_call.take(Step.START) is None, "it has no state to start in"
    assert by_call.take(Step.INITIALISE) is VcpuPhase.EMPTY
    assert by_call.take(Step.INITIALISE) is None
    assert by_call.take(Step.START) is VcpuPhase.READY
    assert by_interrupt.take(Step.SIPI) is VcpuPhase.EMPTY
    assert by_call.phase is by_interrupt.phase is VcpuPhase.UP


@given(st.lists(st.sampled_from([*Step, *Hold, *((hold, False) for hold in Hold)]), max_size=30))
def test_a_vcpu_runs_unless_it_is_down_stopped_or_held(steps: list[object]) -> None:
    life, holds = VcpuLife(), Hold(0)
    for step in steps:
        if isinstance(step, Step):
            life.take(step)
        elif isinstance(step, Hold):
            life.hold(step)
            holds |= step
        elif isinstance(step, tuple):
            life.let_go(step[0])
            holds &= ~step[0]
        assert life.runs == (not holds and life.phase not in (VcpuPhase.DOWN, VcpuPhase.STOPPED))
