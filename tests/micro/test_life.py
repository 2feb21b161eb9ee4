"""A domain's life by the verbs alone, beside one that runs; and hooks that come and go while it does."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guests import Transcript, running
from vmm.boot import pvh
from vmm.boot.image import load_image
from vmm.config.domain import DomainConfig
from vmm.config.shape import Shape
from vmm.errors import PyvmmError, UsageError
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hooks import Carry, Hooks, Proceed
from vmm.machine.hypervisor import Hypervisor
from vmm.machine.lifecycle import Life, WrongLife
from vmm.machine.memory import guest as guest_memory
from vmm.observe import live
from vmm.toolstack import lifecycle as toolstack
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.constants import E820, PAGE_BYTES, HvmParam, Hypercall, ShutdownReason
from vmm.xenabi.hypercalls import dispatch
from vmm.xenabi.state import Call
from vmm.xenabi.transport import Transport
from vmm.xenabi.values import Gfn, Gpa, HypercallOutcome, MemmapEntry, VcpuId
from vmm.xenabi.vcpu_context import flat

Build = Callable[[str], Path]
RAM_BYTES = 4 << 20
DEADLINE_S = 60


def until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@pytest.fixture
def hypervisor(system: System) -> Iterator[Hypervisor]:
    made = Hypervisor(system)
    yield made
    made.close()


def put_in(domain: Domain, image: Path) -> None:
    """RAM page by page, a memory map, an image, and a vCPU's registers: what dom0 does by hypercalls."""
    memory = domain.memory
    for gfn in range(RAM_BYTES // PAGE_BYTES):
        assert memory.populate(Gfn(gfn))
    memory.set_map([MemmapEntry(Gpa(0), RAM_BYTES, E820.RAM)])
    entry = pvh.load(memory, load_image(image), "", [], 0)
    domain.vcpus[0].initialise(flat(entry.eip, entry.ebx))
    domain.vcpus[0].up()
    domain.hvm_params[HvmParam.STORE_PFN] = 0


def held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def resident_kib() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


def test_empty_domains_come_to_life_and_go_200_times_beside_one_that_runs(hypervisor: Hypervisor, build: Build) -> None:
    transcript, image = Transcript(), build("loop")
    beside = build_domain(
        hypervisor, DomainConfig(build("sleeper"), transport=Transport.PAGE).checked(), load_image(build("sleeper")), [],
        transcript,
    )  # fmt: skip
    beside.unpause()
    until(lambda: "asleep" in transcript.text, "the neighbour does not run")
    shape = Shape("made", RAM_BYTES, vcpus=2)

    def once() -> None:
        domain = hypervisor.create(shape, Transport.PAGE)
        assert (domain.life.state, domain.memory.pages, domain.outcome) == (Life.CREATED, 0, None)
        assert hypervisor.find(domain.domid) is domain
        put_in(domain, image)
        domain.unpause()
        until(lambda: domain.account.hypercalls > 0, "it does not run")
        domain.pause()
        assert domain.life.state is Life.PAUSED
        stopped_at = domain.vcpus[0].ask(lambda: int(domain.vcpus[0].kvm.regs.rip))
        assert domain.vcpus[0].ask(lambda: int(domain.vcpus[0].kvm.regs.rip)) == stopped_at
        domain.pause()
        domain.unpause()
        assert domain.life.state is Life.PAUSED, "it was paused twice"
        domain.unpause()
        assert domain.life.state is Life.RUNNING
        hypervisor.destroy(domain)
        assert (domain.life.state, hypervisor.find(domain.domid)) == (Life.GONE, None)
        with pytest.raises(WrongLife, match="a domain that is gone cannot be asked to unpause"):
            domain.unpause()

    for _ in range(10):
        once()
    before, kib = held(), resident_kib()
    for _ in range(190):
        once()
    assert held() == before
    assert resident_kib() - kib < 8 << 10
    assert beside.life.state is Life.RUNNING
    assert beside.outcome is None


def test_what_goes_by_xenstore_is_refused_where_it_is_not_pyvmms(hypervisor: Hypervisor) -> None:
    domain = hypervisor.create(Shape("dom0s", 256 << 20), Transport.PAGE)
    for ask in (
        lambda: toolstack.set_memory(hypervisor, domain, 128 << 20),
        lambda: toolstack.set_vcpus(hypervisor, domain, 1),
        lambda: toolstack.press_sysrq(hypervisor, domain, "t"),
    ):
        with pytest.raises(UsageError, match=r"served by xenstored in dom0.*--xenstore internal"):
            ask()
    assert not toolstack.ask(hypervisor, domain, "poweroff")


def test_a_domain_that_never_ran_can_be_shut_down_and_destroyed(hypervisor: Hypervisor) -> None:
    domain = hypervisor.create(Shape("empty", RAM_BYTES), Transport.PAGE)
    domain.shutdown(ShutdownReason.poweroff)
    assert (domain.life.state, domain.ended_by) == (Life.SHUT_DOWN, ShutdownReason.poweroff)
    hypervisor.destroy(domain)
    hypervisor.destroy(domain)


def test_a_domain_that_cannot_be_made_leaves_nothing(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    before = held()
    shape = Shape("none", RAM_BYTES)

    def refuse(*_: object, **__: object) -> None:
        raise PyvmmError("no more memory")

    for target, name in ((guest_memory, "PageFile"), (System, "create_vm"), (System, "supported_cpuid")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, refuse)
            with pytest.raises(PyvmmError, match="no more memory"):
                hypervisor.create(shape, Transport.PAGE)
        assert held() == before
    assert hypervisor.domains() == []


def test_limits_are_the_shapes(hypervisor: Hypervisor) -> None:
    domain = hypervisor.create(
        Shape("small", RAM_BYTES, vcpus=3, event_ports=32, grant_frames=2, maptrack_entries=5), Transport.PAGE
    )
    assert (len(domain.vcpus), domain.events.limit, domain.grants.max_frames) == (3, 32, 2)
    assert domain.memory.maximum_pages == RAM_BYTES // PAGE_BYTES + guest_memory.SLACK_PAGES
    assert not domain.memory.populate(Gfn(1 << 40))


def test_a_domain_that_is_closed_can_still_be_described(hypervisor: Hypervisor) -> None:
    from vmm.xenabi.hypercalls.domctl import describe

    domain = hypervisor.create(Shape("gone", RAM_BYTES, vcpus=2), Transport.PAGE)
    other = hypervisor.create(Shape("other", RAM_BYTES), Transport.PAGE)
    hypervisor.destroy(domain)
    told = describe(Call(other, other.vcpus[0]), domain)
    assert (told.max_vcpu_id, len(told.pack())) == (1, told.sizeof())


def test_hooks_come_and_go_while_a_guest_runs(build: Build) -> None:
    seen: list[int] = []
    exits: list[int] = []

    def on_hypercall(call: Call, carry: Carry) -> HypercallOutcome:
        seen.append(call.number)
        return carry(call)

    def on_exit(vcpu: VcpuId, reason: int, proceed: Proceed) -> None:
        exits.append(reason)
        proceed()

    with running(DomainConfig(build("sleeper"), transport=Transport.PAGE)) as (domain, transcript):
        until(lambda: "asleep" in transcript.text, "the guest does not sleep")
        vcpu = domain.vcpus[0]
        until(lambda: vcpu.kvm.answered_in_loop > 3, "the C loop answers nothing")
        hooks = Hooks(hypercall=on_hypercall, exit=on_exit)
        for _ in range(3):
            domain.hooks.attach(hooks)
            domain.hooks.attach(hooks)  # twice does no harm
            seen.clear()
            until(lambda: len(seen) > 3, "the hook is not called")
            assert {Hypercall.vcpu_op} >= set(seen)
            assert exits
            domain.hooks.detach(hooks)
            domain.hooks.detach(hooks)
            answered = vcpu.kvm.answered_in_loop
            until(lambda before=answered: vcpu.kvm.answered_in_loop > before + 3, "the C loop does not go on")
            after = len(seen)
            time.sleep(0.05)
            assert len(seen) == after


def test_hooks_are_around_each_other_and_the_last_is_outermost(hypervisor: Hypervisor) -> None:
    order: list[str] = []

    def hook(name: str) -> Hooks:
        def around(call: Call, carry: Carry) -> HypercallOutcome:
            order.append(f"{name} in")
            result = carry(call)
            order.append(f"{name} out")
            return result

        return Hooks(hypercall=around, clock=lambda now: now + 1)

    domain = hypervisor.create(Shape("hooked", RAM_BYTES), Transport.PAGE)
    first, second = hook("first"), hook("second")
    domain.hooks.attach(first)
    domain.hooks.attach(second)
    call = Call(domain, domain.vcpus[0])
    call.number, call.args = 999, (0,) * 6
    assert domain.hypercall(call) == -errno.ENOSYS
    assert order == ["second in", "first in", "first out", "second out"]
    assert domain.system_time_ns() - domain.clock_ns() < 10**9
    domain.hooks.detach(first)
    order.clear()
    domain.hypercall(call)
    assert order == ["second in", "second out"]
    domain.hooks.detach(second)
    assert domain._carry is dispatch


def test_a_running_guest_is_traced_until_it_dies(build: Build) -> None:
    with running(DomainConfig(build("sleeper"), transport=Transport.PAGE)) as (domain, transcript):
        until(lambda: "asleep" in transcript.text, "the guest does not sleep")
        lines: list[str] = []
        thread = threading.Thread(
            target=lambda: lines.extend(live.follow(domain, "vcpu_op", as_json=False, left=lambda: False))
        )
        thread.start()
        time.sleep(0.3)
        domain.crash("the test ends it")
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert any("vcpu_op.set_singleshot_timer" in line for line in lines)
        assert not domain.hooks


def test_a_running_guest_is_counted(build: Build) -> None:
    with running(DomainConfig(build("sleeper"), transport=Transport.PAGE)) as (domain, transcript):
        until(lambda: "asleep" in transcript.text, "the guest does not sleep")
        table = "\n".join(live.count(domain, 0.3, lambda: False))
        assert "vcpu_op.set_singleshot_timer" in table


def test_no_hypercall_holds_its_vcpu_for_long(hypervisor: Hypervisor, build: Build) -> None:
    from vmm.xenabi.hypercalls.memory_op import FOREIGN_PAGES_AT_A_TIME, PAGES_AT_A_TIME

    shapes = Shape("one", 64 << 20, shareable=True), Shape("other", 64 << 20, shareable=True)
    one, other = (hypervisor.create(shape, Transport.PAGE) for shape in shapes)
    other.memory.add_ram()
    slowest = {}
    started = time.perf_counter()
    for gfn in range(PAGES_AT_A_TIME):
        one.memory.populate(Gfn(gfn))
    slowest["populate"] = time.perf_counter() - started
    started = time.perf_counter()
    for gfn in range(FOREIGN_PAGES_AT_A_TIME):
        one.memory.map_foreign(Gfn(0x80000 + gfn), other.memory, Gfn(gfn))
    slowest["foreign"] = time.perf_counter() - started
    started = time.perf_counter()
    for gfn in range(PAGES_AT_A_TIME):
        one.memory.release(Gfn(gfn))
    slowest["release"] = time.perf_counter() - started
    if not {"svm", "vmx"} & set(Path("/proc/cpuinfo").read_text().split()):  # in an L1 everything is ten times as slow
        assert all(seconds < 0.05 for seconds in slowest.values()), slowest
