"""The state machine between a back end and its front end, over a real xenstore."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.frontend import Guest
from vmm.devices.bus.xenbus import TABLE, Action, Frontend, Ours, State, Xenbus, XenbusDevice
from vmm.errors import PyvmmError
from vmm.xenstore.server import Store
from vmm.xenstore.service import Xenstore

FRONT, BACK, LIBXL = "/local/domain/1/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712", "/libxl/1/device/vbd/51712"


class Counted:
    """A back end that counts what is asked of it."""

    kind = "vbd"
    handle = 51712
    fixed = frozenset({"mode"})

    def __init__(self) -> None:
        self.connects = self.disconnects = self.releases = 0
        self.slow: list[Callable[[], None]] | None = None
        self.failed: Callable[[str], None] | None = None

    def toolstack_keys(self) -> dict[str, str]:
        return {"dev": "xvda"}

    def frontend_keys(self) -> dict[str, str]:
        return {"virtual-device": "51712", "mode": "w"}

    def features(self) -> dict[str, str]:
        return {"feature-flush-cache": "1"}

    def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
        assert self.connects == self.disconnects
        self.connects += 1
        self.failed = failed
        frontend.number("ring-ref", 8)
        return {"sectors": "1"}

    def disconnect(self, done: Callable[[], None]) -> None:
        self.disconnects += 1
        if self.slow is None:
            done()
        else:
            self.slow.append(done)

    def counters(self) -> dict[str, int]:
        return {}

    def release(self) -> None:
        assert self.connects == self.disconnects
        self.releases += 1


class World:
    """A xenstore, a bus, one device, and the guest's hand on its keys."""

    def __init__(self, backend: Counted | None = None) -> None:
        self.xenstore = Xenstore()
        self.bus = Xenbus(self.xenstore, Guest())
        self.backend = backend or Counted()
        self.attachment = self.bus.attach(self.backend)
        self.device: XenbusDevice = self.attachment.device

    def read(self, path: str) -> bytes | None:
        return self.xenstore.run(lambda store: store.read(path))

    def write(self, path: str, value: str) -> None:
        self.xenstore.run(lambda store: store.write(path, value))

    def front(self, state: int | str) -> None:
        self.write(f"{FRONT}/state", str(int(state) if isinstance(state, State) else state))

    @property
    def state(self) -> int:
        self.xenstore.run(lambda _: None)  # what was posted has been done
        self.xenstore.run(lambda _: None)
        return int(self.read(f"{BACK}/state") or 0)

    def connect(self) -> None:
        self.front(State.INITIALISED)
        assert self.state == State.CONNECTED
        self.front(State.CONNECTED)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.bus.close()
    assert made.backend.releases == 1
    assert made.backend.connects == made.backend.disconnects
    made.xenstore.close()


def test_a_new_device_waits_with_all_its_keys(world: World) -> None:
    assert world.state == State.INIT_WAIT
    assert world.read(f"{BACK}/feature-flush-cache") == b"1"
    assert world.read(f"{BACK}/frontend") == world.read(f"{LIBXL}/frontend") == FRONT.encode()
    assert world.read(f"{FRONT}/backend") == BACK.encode()
    assert world.read(f"{FRONT}/state") == b"1"
    for key, expected in (("state", ["n1", "r0"]), ("mode", ["n0", "r1"])):
        node = world.xenstore.run(lambda store, key=key: store.tree.nodes[f"{FRONT}/{key}"])
        assert [str(permission) for permission in node.permissions] == expected


@pytest.mark.parametrize("ready", [State.INITIALISED, State.CONNECTED])
def test_connects_once_the_front_end_is_ready(world: World, ready: State) -> None:
    world.front(ready)
    assert world.state == State.CONNECTED
    assert world.read(f"{BACK}/sectors") == b"1"
    world.front(State.CONNECTED)
    assert (world.state, world.backend.connects) == (State.CONNECTED, 1)


def test_a_front_end_that_closes_can_come_back(world: World) -> None:
    for _ in range(3):
        world.connect()
        world.front(State.CLOSING)
        assert world.state == State.CLOSING
        world.front(State.CLOSED)
        assert world.state == State.CLOSED
        world.front(State.INITIALISING)
        assert world.state == State.INIT_WAIT
    assert world.backend.connects == world.backend.disconnects == 3


def test_a_front_end_that_starts_anew_without_closing_is_served_again(world: World) -> None:
    world.connect()
    world.front(State.INITIALISING)
    assert world.state == State.INIT_WAIT
    world.connect()
    assert world.backend.connects == 2


def test_unplugging_asks_the_front_end_and_then_forgets_the_device(world: World) -> None:
    world.connect()
    world.xenstore.run(lambda _: world.device.unplug())
    assert world.state == State.CLOSING
    assert not world.attachment.gone
    world.front(State.CLOSED)
    assert world.device.ended.wait(5)
    assert world.attachment.gone
    for path in (FRONT, BACK, LIBXL):
        assert world.read(path) is None


def test_a_toolstack_unplugs_through_xenstore(world: World) -> None:
    world.connect()
    world.write(f"{BACK}/online", "0")
    world.write(f"{BACK}/state", "5")
    assert world.state == State.CLOSING
    world.front(State.CLOSED)
    assert world.device.ended.wait(5)


def test_force_does_not_wait_for_the_front_end(world: World) -> None:
    world.connect()
    assert world.attachment.detach(force=True)
    assert world.backend.releases == 1


def test_nothing_goes_on_before_a_slow_back_end_has_stopped(world: World) -> None:
    world.connect()
    world.backend.slow = []
    world.front(State.CLOSING)
    world.front(State.CLOSED)
    world.front(State.INITIALISING)
    world.front(State.INITIALISED)
    assert world.state == State.CLOSING
    world.front(State.INITIALISING)
    (done,) = world.backend.slow
    world.backend.slow = None
    done()
    assert world.state == State.INIT_WAIT


@pytest.mark.parametrize("value", ["", "x", "-1", "8 ", "99999999999", "4294967296", "\N{SUPERSCRIPT TWO}"])
def test_a_key_that_is_no_number_closes_the_device(world: World, value: str) -> None:
    world.xenstore.run(lambda store: store.write(f"{FRONT}/ring-ref", value))
    world.front(State.INITIALISED)
    if value:
        assert world.state == State.CLOSING
        assert b"ring-ref is" in (world.read("/local/domain/0/error/backend/vbd/1/51712/error") or b"")
        world.front(State.CLOSED)
        assert world.state == State.CLOSED
    else:
        assert world.state == State.CONNECTED  # missing, which a default stands in for


def test_a_failure_of_the_data_path_closes_the_device(world: World) -> None:
    world.connect()
    assert world.backend.failed is not None
    world.backend.failed("the ring broke")
    assert world.state == State.CLOSING
    assert world.backend.disconnects == 1
    world.front(State.CLOSED)
    world.front(State.INITIALISING)
    assert world.state == State.INIT_WAIT


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.lists(st.sampled_from(["1", "2", "3", "4", "5", "6", "7", "0", "", "x", "44"]), max_size=20))
def test_any_order_of_states_leaves_a_device_that_can_be_used(states: list[str]) -> None:
    world = World()
    for state in states:
        world.front(state)
    world.front(State.CLOSED)
    assert world.state == State.CLOSED
    world.front(State.INITIALISING)
    assert world.state == State.INIT_WAIT
    world.connect()
    world.bus.close()
    assert world.backend.releases == 1
    world.xenstore.close()


def test_closing_the_bus_waits_for_a_back_end_that_is_stopping(world: World) -> None:
    world.connect()
    world.backend.slow = []
    world.front(State.CLOSING)
    assert world.state == State.CLOSING
    (done,) = world.backend.slow

    closing = threading.Thread(target=world.bus.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive()
    done()
    closing.join(5)
    assert not closing.is_alive()


def test_what_fails_after_a_device_was_taken_away_writes_nothing(world: World) -> None:
    world.connect()
    failed = world.backend.failed
    assert failed is not None
    world.attachment.detach(force=True)
    failed("too late")
    assert world.state == 0
    assert world.read("/local/domain/0/error/backend/vbd/1/51712/error") is None


def test_a_host_without_what_a_device_needs_closes_it_and_nobody_elses() -> None:
    class Lacking(Counted):
        def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
            super().connect(frontend, failed)
            raise PyvmmError("diod is not installed")

    world = World(Lacking())
    world.front(State.INITIALISED)
    assert world.state == State.CLOSING
    assert world.read("/local/domain/0/error/backend/vbd/1/51712/error") == b"diod is not installed"
    world.bus.close()
    assert world.backend.disconnects == 1
    world.xenstore.close()


def test_every_state_has_its_row_or_changes_nothing() -> None:
    assert len({row[:3] for row in TABLE.items()}) == len(TABLE)
    for (ours, theirs, _), (action, after) in TABLE.items():
        assert (action is Action.CONNECT) == (ours is Ours.WAITING and theirs in (State.INITIALISED, State.CONNECTED))
        assert (action is Action.DISCONNECT) == (ours in (Ours.MOVING, Ours.ASKED))
        assert action is not Action.NOTHING
        assert after is not None or action in (Action.DISCONNECT, Action.REMOVE)


@settings(max_examples=30, deadline=None)
@given(
    before=st.lists(st.sampled_from(["1", "2", "3", "4", "5", "6", "x"]), max_size=8),
    after=st.lists(st.sampled_from(["1", "2", "3", "4", "5", "6", "x"]), max_size=6),
)
def test_a_device_that_is_given_out_and_taken_back_goes_on_as_before(before: list[str], after: list[str]) -> None:
    first = World()
    for state in before:
        first.front(state)
    assert first.state is not None
    tree = first.xenstore.run(lambda store: store.tree.record())
    record = first.xenstore.run(lambda _: first.device.record())
    second = World.__new__(World)
    second.xenstore, second.backend = Xenstore(), Counted()
    second.bus = Xenbus(second.xenstore, Guest())

    def restore(store: Store) -> XenbusDevice:
        store.tree.restore(tree)
        device = XenbusDevice(second.xenstore, store, Guest(), second.backend)
        device.restore(record)
        return device

    second.device = second.xenstore.run(restore)
    states = []
    for world in (second, first):
        seen = []
        for state in after:
            world.front(state)
            seen.append(world.state)
        states.append(seen)
        world.xenstore.run(lambda _, world=world: world.device.remove())
        world.xenstore.close()
    assert states[0] == states[1]
