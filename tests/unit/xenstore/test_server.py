"""Xenstore's tree, its clients and a guest's ring."""

import errno
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Bytes
from vmm.xenabi.values import Domid, Gfn, Port
from vmm.xenstore.layout import DomainFacts, ask_for, describe_dom0, describe_domain, forget_domain
from vmm.xenstore.ring import StoreRing
from vmm.xenstore.server import Connection, Store
from vmm.xenstore.tree import DOM0, MAX_PATH_BYTES, Permission, StoreError, Tree, check_path
from vmm.xenstore.wire import HEADER, Kind, Message, Reader

GUEST, OTHER = Domid(1), Domid(2)
HOME = "/local/domain/1"
FACTS = DomainFacts(
    GUEST, "g", "00000000-0000-4000-8000-000000000001", 262144, 2, 2, Port(1), Gfn(0xFEFFC), Port(2), Gfn(0xFEFFF)
)


@pytest.fixture
def store() -> Store:
    made = Store()
    describe_dom0(made)
    describe_domain(made, FACTS)
    made.introduced.add(GUEST)
    return made


class Client:
    """A connection whose messages are read back as a client would."""

    def __init__(self, store: Store, domid: Domid) -> None:
        self.rung = 0
        self.connection: Connection = store.connect(domid, self._ring)
        self._reader = Reader()

    def _ring(self) -> None:
        self.rung += 1

    def received(self) -> list[Message]:
        found = []
        while data := self.connection.take():
            found += self._reader.feed(data)
        return found

    def ask(self, kind: Kind, payload: bytes, transaction: int = 0) -> bytes:
        """The answer's payload; events that came with it are dropped."""
        self.connection.handle(Message(kind, 7, transaction, payload))
        answer = next(found for found in self.received() if found.kind != Kind.WATCH_EVENT)
        assert (answer.request_id, answer.transaction_id) == (7, transaction)
        if answer.kind == Kind.ERROR:
            raise StoreError(getattr(errno, answer.payload[:-1].decode()))
        assert answer.kind == kind
        return answer.payload

    def events(self) -> list[tuple[str, str]]:
        found = [message.payload for message in self.received() if message.kind == Kind.WATCH_EVENT]
        return [(path, token) for path, token, _ in (payload.decode().split("\0") for payload in found)]


@pytest.fixture
def guest(store: Store) -> Client:
    return Client(store, GUEST)


@pytest.fixture
def dom0(store: Store) -> Client:
    return Client(store, DOM0)


def refused(code: int, client: Client, kind: Kind, payload: bytes, transaction: int = 0) -> None:
    with pytest.raises(StoreError) as refusal:
        client.ask(kind, payload, transaction)
    assert refusal.value.code == code, errno.errorcode[refusal.value.code]


# ------------------------------------------------------------------------------------------------ the tree


@pytest.mark.parametrize("path", ["", "a", "/a/", "//", "/a//b", "/a b", "/\u00e9", "/" + "x" * MAX_PATH_BYTES])
def test_malformed_path_is_einval(path: str) -> None:
    with pytest.raises(StoreError):
        check_path(path)


def test_written_value_is_read_back_with_the_nodes_above_made(dom0: Client) -> None:
    assert dom0.ask(Kind.WRITE, b"/a/b/c\0value with \0 in it") == b"OK\0"
    assert dom0.ask(Kind.READ, b"/a/b/c\0") == b"value with \0 in it"
    assert dom0.ask(Kind.READ, b"/a/b\0") == b""
    assert dom0.ask(Kind.DIRECTORY, b"/a\0") == b"b\0"


def test_relative_path_starts_at_the_clients_own_domain(guest: Client) -> None:
    assert guest.ask(Kind.WRITE, b"data/x\0y") == b"OK\0"
    assert guest.ask(Kind.READ, HOME.encode() + b"/data/x\0") == b"y"


def test_removed_node_takes_all_below_it(dom0: Client) -> None:
    dom0.ask(Kind.WRITE, b"/a/b/c\0x")
    assert dom0.ask(Kind.RM, b"/a\0") == b"OK\0"
    refused(errno.ENOENT, dom0, Kind.READ, b"/a/b/c\0")
    assert dom0.ask(Kind.RM, b"/a\0") == b"OK\0"
    refused(errno.ENOENT, dom0, Kind.RM, b"/a/b\0")
    refused(errno.EINVAL, dom0, Kind.RM, b"/\0")


def test_mkdir_makes_an_empty_node_once(dom0: Client) -> None:
    dom0.ask(Kind.WRITE, b"/a\0kept")
    dom0.ask(Kind.MKDIR, b"/a\0")
    assert dom0.ask(Kind.READ, b"/a\0") == b"kept"


# ------------------------------------------------------------------------------------------- permissions


def test_guest_reads_what_is_for_it_and_writes_only_its_own(store: Store, guest: Client) -> None:
    assert guest.ask(Kind.READ, b"name\0") == b"g"
    refused(errno.EACCES, guest, Kind.WRITE, b"name\0other")
    refused(errno.EACCES, guest, Kind.READ, b"/tool\0")
    refused(errno.EACCES, guest, Kind.READ, b"/nothing/there\0")
    refused(errno.ENOENT, guest, Kind.READ, b"nothing\0")
    refused(errno.EACCES, guest, Kind.RM, b"name\0")
    assert guest.ask(Kind.WRITE, b"control/feature-poweroff\x001") == b"OK\0"


def test_node_that_a_guest_makes_is_its_own(store: Store, guest: Client) -> None:
    guest.ask(Kind.WRITE, b"data/mine\0x")
    assert guest.ask(Kind.GET_PERMS, b"data/mine\0") == b"n1\0"
    stranger = Client(store, OTHER)
    refused(errno.EACCES, stranger, Kind.READ, f"{HOME}/data/mine\0".encode())
    assert guest.ask(Kind.SET_PERMS, b"data/mine\0n1\0r2\0") == b"OK\0"
    assert stranger.ask(Kind.READ, f"{HOME}/data/mine\0".encode()) == b"x"
    refused(errno.EACCES, stranger, Kind.WRITE, f"{HOME}/data/mine\0y".encode())
    refused(errno.EPERM, guest, Kind.SET_PERMS, b"data/mine\0n2\0")
    for bad in (b"data/mine\0", b"data/mine\0x1\0", b"data/mine\0n70000\0", b"data/mine\0n\0"):
        refused(errno.EINVAL, guest, Kind.SET_PERMS, bad)


@given(st.integers(0, 0xFFFF), st.booleans(), st.booleans())
def test_permission_reads_as_it_is_written(domid: int, read: bool, write: bool) -> None:
    entry = Permission(Domid(domid), read, write)
    assert Permission.parse(str(entry)) == entry


# ------------------------------------------------------------------------------------------ transactions


def start(client: Client) -> int:
    return int(client.ask(Kind.TRANSACTION_START, b"\0")[:-1])


def test_transaction_is_seen_by_others_only_when_it_ends(store: Store, guest: Client, dom0: Client) -> None:
    number = start(guest)
    guest.ask(Kind.WRITE, b"data/x\x001", number)
    assert guest.ask(Kind.READ, b"data/x\0", number) == b"1"
    refused(errno.ENOENT, dom0, Kind.READ, f"{HOME}/data/x\0".encode())
    assert guest.ask(Kind.TRANSACTION_END, b"T\0", number) == b"OK\0"
    assert dom0.ask(Kind.READ, f"{HOME}/data/x\0".encode()) == b"1"
    refused(errno.ENOENT, guest, Kind.TRANSACTION_END, b"T\0", number)


def test_transaction_that_looked_at_what_has_changed_is_eagain(guest: Client, dom0: Client) -> None:
    number = start(guest)
    guest.ask(Kind.READ, b"name\0", number)
    guest.ask(Kind.WRITE, b"data/x\x001", number)
    dom0.ask(Kind.WRITE, f"{HOME}/name\0new".encode())
    refused(errno.EAGAIN, guest, Kind.TRANSACTION_END, b"T\0", number)
    refused(errno.ENOENT, guest, Kind.READ, b"data/x\0")


def test_transaction_that_touched_nothing_of_it_is_not_disturbed(guest: Client, dom0: Client) -> None:
    number = start(guest)
    guest.ask(Kind.WRITE, b"data/x\x001", number)
    dom0.ask(Kind.WRITE, b"/elsewhere\x001")
    assert guest.ask(Kind.TRANSACTION_END, b"T\0", number) == b"OK\0"


def test_abandoned_transaction_leaves_nothing(guest: Client) -> None:
    number = start(guest)
    guest.ask(Kind.WRITE, b"data/x\x001", number)
    assert guest.ask(Kind.TRANSACTION_END, b"F\0", number) == b"OK\0"
    refused(errno.ENOENT, guest, Kind.READ, b"data/x\0")
    refused(errno.EINVAL, guest, Kind.TRANSACTION_END, b"X\0", start(guest))


@given(st.lists(st.tuples(st.sampled_from("wrm"), st.sampled_from(["/a", "/a/b", "/a/c", "/d"]), st.binary(max_size=3))))
def test_one_transaction_does_what_its_requests_would_do_one_by_one(
    operations: list[tuple[str, str, bytes]],
) -> None:
    single, together = Tree(), Tree()
    view = together.view()
    for what, path, value in operations:
        for tree, target in ((single, single.view()), (together, view)):
            try:
                if what == "w":
                    target.write(path, value, DOM0)
                elif what == "r":
                    target.remove(path, DOM0)
                else:
                    target.make(path, DOM0)
            except StoreError:
                pass
            if tree is single:
                target.commit()
    assert not view.conflicts()
    view.commit()
    assert {path: (node.value, set(node.children)) for path, node in single.nodes.items()} == {
        path: (node.value, set(node.children)) for path, node in together.nodes.items()
    }
    for tree in (single, together):
        assert tree.owned_by(DOM0) == len(tree.nodes)
        for path, node in tree.nodes.items():
            for child in node.children:
                assert f"{path.rstrip('/')}/{child}" in tree.nodes


# ----------------------------------------------------------------------------------------------- watches


def test_watch_fires_at_once_and_for_all_that_changes_below(guest: Client, dom0: Client) -> None:
    guest.connection.handle(Message(Kind.WATCH, 1, 0, b"data\0token\0"))
    assert [message.kind for message in guest.received()] == [Kind.WATCH, Kind.WATCH_EVENT]
    dom0.ask(Kind.WRITE, f"{HOME}/data/x/y\x001".encode())
    dom0.ask(Kind.WRITE, f"{HOME}/name\x001".encode())
    assert guest.events() == [("data/x/y", "token")]
    dom0.ask(Kind.RM, f"{HOME}/data/x\0".encode())
    assert guest.events() == [("data/x", "token")]
    assert guest.ask(Kind.UNWATCH, b"data\0token\0") == b"OK\0"
    dom0.ask(Kind.WRITE, f"{HOME}/data/x\x001".encode())
    assert guest.events() == []
    refused(errno.ENOENT, guest, Kind.UNWATCH, b"data\0token\0")


def test_watch_below_a_removed_node_hears_of_its_own(guest: Client, dom0: Client) -> None:
    dom0.ask(Kind.WRITE, f"{HOME}/data/x/y\x001".encode())
    guest.ask(Kind.WATCH, f"{HOME}/data/x/y\0t\0".encode())
    guest.received()
    dom0.ask(Kind.RM, f"{HOME}/data/x\0".encode())
    assert guest.events() == [(f"{HOME}/data/x/y", "t")]


def test_watch_tells_nothing_of_what_may_not_be_read(store: Store, guest: Client, dom0: Client) -> None:
    guest.ask(Kind.WATCH, b"/\0t\0")
    guest.received()
    dom0.ask(Kind.WRITE, b"/secret\x001")
    assert guest.events() == []


def test_event_that_still_waits_is_not_sent_twice(guest: Client, dom0: Client) -> None:
    guest.ask(Kind.WATCH, b"data\0t\0")
    guest.received()
    for _ in range(1000):
        dom0.ask(Kind.WRITE, f"{HOME}/data/x\x001".encode())
    assert guest.connection.backlog == 1


def test_transaction_fires_when_it_is_committed(guest: Client, dom0: Client) -> None:
    dom0.ask(Kind.WATCH, b"/local\0t\0")
    dom0.received()
    number = start(guest)
    guest.ask(Kind.WRITE, b"data/x\x001", number)
    assert dom0.events() == []
    guest.ask(Kind.TRANSACTION_END, b"T\0", number)
    assert dom0.events() == [(f"{HOME}/data/x", "t")]


def test_special_watches_tell_of_domains_and_are_for_dom0(store: Store, guest: Client, dom0: Client) -> None:
    refused(errno.EACCES, guest, Kind.WATCH, b"@introduceDomain\0t\0")
    dom0.ask(Kind.WATCH, b"@introduceDomain\0i\0")
    dom0.ask(Kind.WATCH, b"@releaseDomain\0r\0")
    refused(errno.EINVAL, dom0, Kind.WATCH, b"@other\0t\0")
    dom0.received()
    store.introduce(OTHER)
    store.release(OTHER)
    assert dom0.events() == [("@introduceDomain", "i"), ("@releaseDomain", "r")]


def test_reset_drops_watches_and_transactions(guest: Client, dom0: Client) -> None:
    guest.ask(Kind.WATCH, b"data\0t\0")
    number = start(guest)
    assert guest.ask(Kind.RESET_WATCHES, b"\0") == b"OK\0"
    refused(errno.ENOENT, guest, Kind.READ, b"name\0", number)
    dom0.ask(Kind.WRITE, f"{HOME}/data/x\x001".encode())
    assert guest.events() == []


# ------------------------------------------------------------------------------------- limits and layout


def test_quotas_hold_a_guest_and_not_dom0(guest: Client, dom0: Client, store: Store) -> None:
    quota = store.tree.quota
    refused(errno.ENOSPC, guest, Kind.WRITE, b"data/x\0" + bytes(quota.node_bytes + 1))
    number = 0
    with pytest.raises(StoreError) as refusal:
        for number in range(quota.nodes + 1):
            guest.ask(Kind.WRITE, f"data/{number}\0".encode())
    assert refusal.value.code == errno.ENOSPC
    assert 900 < number < quota.nodes
    for count in range(quota.watches):
        guest.ask(Kind.WATCH, f"data\0{count}\0".encode())
    refused(errno.E2BIG, guest, Kind.WATCH, b"data\0more\0")
    for _ in range(quota.transactions):
        start(guest)
    refused(errno.ENOSPC, guest, Kind.TRANSACTION_START, b"\0")


def test_transaction_looks_at_so_many_nodes_and_no_more(guest: Client, store: Store) -> None:
    number = start(guest)
    codes = set()
    for name in range(store.tree.quota.transaction_nodes + 1):
        with pytest.raises(StoreError) as missing:
            guest.ask(Kind.READ, f"data/{name}\0".encode(), number)
        codes.add(missing.value.code)
    assert codes == {errno.ENOENT, errno.ENOSPC}


def test_long_directory_comes_in_parts(dom0: Client) -> None:
    names = [f"a-rather-long-name-{number:04}" for number in range(400)]
    for name in names:
        dom0.ask(Kind.WRITE, f"/many/{name}\0".encode())
    refused(errno.E2BIG, dom0, Kind.DIRECTORY, b"/many\0")
    got, generations = b"", set()
    while True:
        generation, _, part = dom0.ask(Kind.DIRECTORY_PART, f"/many\0{len(got)}\0".encode()).partition(b"\0")
        generations.add(generation)
        if part.endswith(b"\0\0"):
            got += part[:-1]
            break
        got += part
    assert got.decode().rstrip("\0").split("\0") == names
    assert len(generations) == 1


def test_domain_paths_and_who_is_there(guest: Client) -> None:
    assert guest.ask(Kind.GET_DOMAIN_PATH, b"5\0") == b"/local/domain/5\0"
    assert guest.ask(Kind.IS_DOMAIN_INTRODUCED, b"1\0") == b"T\0"
    assert guest.ask(Kind.IS_DOMAIN_INTRODUCED, b"9\0") == b"F\0"
    refused(errno.EINVAL, guest, Kind.GET_DOMAIN_PATH, b"x\0")
    refused(errno.EACCES, guest, Kind.INTRODUCE, b"1\x002\x003\0")


def test_domain_that_is_forgotten_leaves_only_dom0s_nodes(store: Store) -> None:
    fresh = Store()
    describe_dom0(fresh)
    forget_domain(store, GUEST)
    left = set(store.tree.nodes) - set(fresh.tree.nodes)
    assert left <= {"/local/domain/0/backend", "/local/domain/0/backend/console"}
    assert store.tree.owned_by(GUEST) == 0


def test_guest_is_asked_to_power_off_once_it_listens(store: Store, guest: Client) -> None:
    assert not ask_for(store, GUEST, "poweroff")
    guest.ask(Kind.WRITE, b"control/feature-poweroff\x001")
    guest.ask(Kind.WATCH, b"control/shutdown\0t\0")
    guest.received()
    assert ask_for(store, GUEST, "poweroff")
    assert guest.events() == [("control/shutdown", "t")]
    assert guest.ask(Kind.READ, b"control/shutdown\0") == b"poweroff"


# ----------------------------------------------------------------------------------------------- the ring

INDEXES, CONNECTION, ERROR = 2048, 2068, 2072


class Frontend:
    """The guest's side of the ring."""

    def __init__(self, store: Store) -> None:
        self.page = Bytes()
        self.notices = 0
        self.server = StoreRing(self.page, store.connect(GUEST, lambda: None), self._notify)
        self._reader = Reader()

    def _notify(self) -> None:
        self.notices += 1

    def word(self, offset: int) -> int:
        return int(struct.unpack("<I", self.page.read(offset, 4))[0])

    def put(self, offset: int, value: int) -> None:
        self.page.write(offset, struct.pack("<I", value & 0xFFFF_FFFF))

    def send(self, data: bytes) -> None:
        while data:
            consumed, produced = self.word(INDEXES), self.word(INDEXES + 4)
            room = 1024 - ((produced - consumed) & 0xFFFF_FFFF)
            piece, data = data[:room], data[room:]
            for index, byte in enumerate(piece):
                self.page.write((produced + index) % 1024, bytes([byte]))
            self.put(INDEXES + 4, produced + len(piece))
            self.server.on_event()
            self.collect()

    def collect(self) -> None:
        consumed, produced = self.word(INDEXES + 8), self.word(INDEXES + 12)
        data = bytes(self.page.read(1024 + (at % 1024), 1)[0] for at in range(consumed, produced))
        self.put(INDEXES + 8, produced)
        self.messages += self._reader.feed(data)

    messages: list[Message]


def frontend(store: Store) -> Frontend:
    made = Frontend(store)
    made.messages = []
    return made


def test_ring_carries_messages_longer_than_itself(store: Store) -> None:
    front = frontend(store)
    value = bytes(range(256)) * 8
    front.send(Message(Kind.WRITE, 1, 0, b"data/x\0" + value).pack())
    front.send(Message(Kind.READ, 2, 0, b"data/x\0").pack())
    while len(front.messages) < 2:
        front.server.on_event()
        front.collect()
    assert [message.payload for message in front.messages] == [b"OK\0", value]
    assert front.notices


@pytest.mark.parametrize(
    ("offset", "value", "error"), [(INDEXES + 4, 5000, 2), (INDEXES + 12, 5000, 2), (INDEXES + 8, 5, 2)]
)
def test_ring_with_a_wrong_index_is_cut_off_until_it_reconnects(store: Store, offset: int, value: int, error: int) -> None:
    front = frontend(store)
    front.put(offset, value)
    if offset != INDEXES + 4:
        request = Message(Kind.READ, 1, 0, b"name\0").pack()
        front.page.write(0, request)
        front.put(INDEXES + 4, len(request))
    front.server.on_event()
    assert front.word(ERROR) == error
    front.put(CONNECTION, 1)
    front.server.on_event()
    assert (front.word(CONNECTION), front.word(ERROR)) == (0, 0)
    front.send(Message(Kind.READ, 9, 0, b"name\0").pack())
    assert front.messages[-1].payload == b"g"


def test_payload_that_is_too_long_cuts_off(store: Store) -> None:
    front = frontend(store)
    front.send(HEADER.pack(Kind.READ, 1, 0, 4097))
    assert front.word(ERROR) == 3


@given(st.binary(max_size=1500), st.integers(0, 2**32 - 1))
def test_any_bytes_end_in_answers_or_a_cut(data: bytes, start: int) -> None:
    store = Store()
    describe_dom0(store)
    describe_domain(store, FACTS)
    front = frontend(store)
    front.put(INDEXES, start)
    front.put(INDEXES + 4, start + len(data[:1024]))
    for index, byte in enumerate(data[:1024]):
        front.page.write((start + index) % 1024, bytes([byte]))
    front.server.on_event()
    assert front.word(ERROR) in (0, 2, 3)


@given(st.lists(st.tuples(st.sampled_from([*Kind, 20, 99]), st.integers(0, 3), st.binary(max_size=60)), max_size=30))
def test_any_request_is_answered_once(requests: list[tuple[int, int, bytes]]) -> None:
    store = Store()
    describe_dom0(store)
    describe_domain(store, FACTS)
    client = Client(store, GUEST)
    for number, (kind, transaction, payload) in enumerate(requests):
        client.connection.handle(Message(kind, number, transaction, payload))
    answers = [message for message in client.received() if message.kind != Kind.WATCH_EVENT]
    assert [message.request_id for message in answers] == list(range(len(requests)))


def test_numbers_are_the_headers() -> None:
    header = Path("/usr/include/xen/io/xs_wire.h").read_text()
    names = header[header.index("XS_CONTROL,") : header.index("XS_TYPE_COUNT")]
    listed = [word.strip(" ,") for word in names.splitlines() if word.strip().startswith("XS_")]
    assert [f"XS_{kind.name}" for kind in Kind] == [name.partition(" ")[0] for name in listed]


def test_a_transaction_that_writes_one_node_for_ever_takes_no_more_room(store: Store, guest: Client) -> None:
    transaction = start(guest)
    for number in range(2000):
        guest.ask(Kind.WRITE, b"data/x\0%d" % number, transaction)
    assert len(guest.connection._transactions[transaction].changes) == 1
    watching = Client(store, DOM0)
    watching.ask(Kind.WATCH, b"/local/domain/1/data\0t\0")
    watching.events()
    guest.ask(Kind.TRANSACTION_END, b"T\0", transaction)
    assert watching.events() == [("/local/domain/1/data/x", "t")]


PATHS = st.sampled_from(["/a", "/a/b", "/a/b/c", "/local/domain/1/data/x", "/local/domain/1/data", "/tool"])


@given(
    steps=st.lists(st.tuples(st.sampled_from("wrm"), PATHS, st.binary(max_size=4)), max_size=20),
    later=st.lists(st.tuples(st.sampled_from("wrm"), PATHS, st.binary(max_size=4)), max_size=10),
)
def test_a_tree_that_is_given_out_and_taken_back_answers_as_before(
    steps: list[tuple[str, str, bytes]], later: list[tuple[str, str, bytes]]
) -> None:
    def act(on: Store, asked: list[tuple[str, str, bytes]]) -> list[object]:
        client, found = on.connect(Domid(1), lambda: None), []
        for kind, path, value in asked:
            what = {"w": Kind.WRITE, "r": Kind.READ, "m": Kind.RM}[kind]
            payload = path.encode() + b"\0" + (value if kind == "w" else b"")
            client.handle(Message(what, 1, 0, payload))
            found.append(client.take())
        return found

    first, second = Store(), Store()
    describe_dom0(first)
    first.write("/local/domain/1", "", (Permission(Domid(1), False, False),))
    act(first, steps)
    second.tree.restore(first.tree.record())
    assert act(second, later) == act(first, later)
    assert second.tree.record() == first.tree.record()
    assert second.tree.owned_by(Domid(1)) == first.tree.owned_by(Domid(1))
