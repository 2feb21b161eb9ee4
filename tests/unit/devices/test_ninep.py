"""The 9pfs back end: `--share`, its rings, and messages to a real server and back."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.frontend import Guest, wait
from vmm.devices.bus.xenbus import Bound
from vmm.devices.ninep import backend as ninep_backend
from vmm.devices.ninep.backend import ShareBackend
from vmm.devices.ninep.mover import HEADER, TATTACH, Mover
from vmm.devices.ninep.ring import ShareRing
from vmm.devices.ninep.server import start_server
from vmm.devices.ninep.spec import Share, parse_share
from vmm.devices.ring.granted import GrantedPages
from vmm.errors import UsageError
from vmm.xenabi.byte_ring import RingBroken
from vmm.xenabi.values import Domid, XenError

TVERSION, RVERSION, RATTACH, RLERROR, TWALK, TLOPEN, TREAD, RREAD = 100, 101, 105, 7, 110, 12, 116, 117
ORDER = 3
HALF = (1 << ORDER) * 4096 // 2
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 0, 1, 16, 17


def text(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


def message(kind: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


VERSION = message(TVERSION, 0xFFFF, struct.pack("<I", 8192) + text(b"9P2000.L"))


def attach(tag: int = 1, name: bytes = b"anything", user: int = 0xFFFF_FFFF) -> bytes:
    return message(TATTACH, tag, struct.pack("<II", 0, 0xFFFF_FFFF) + text(b"") + text(name) + struct.pack("<I", user))


class Frontend:
    """A front end with one ring: interface page at gfn 0, data from gfn 1 on."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.guest = Guest()
        self.page = self.guest.memory.page(0)
        refs = [self.guest.grant(gfn) for gfn in range(1, 1 + (1 << ORDER))]
        self.page[128 : 132 + 4 * len(refs)] = struct.pack(f"<I{len(refs)}I", ORDER, *refs)
        self.ref = self.guest.grant(0)
        self.indices = self.page[:128].cast("I")
        self.failures: list[str] = []
        ring = ShareRing(GrantedPages(self.guest.grants, self.guest.memory), self.ref)
        server = start_server(folder, read_only=read_only)
        self.mover = Mover("9pfs-test", server, [ring], bytes(folder), self.failures.append)
        self.port = self.guest.events.alloc_unbound(Domid(0))
        self.guest.events.connect(self.port, Domid(0), self.mover.bell)
        self.mover.bind(0, Bound(self.guest.events, self.port, self.mover.bell))
        self.mover.start()

    def _data(self, first_gfn: int, index: int) -> tuple[memoryview, int]:
        at = index % HALF
        return self.guest.memory.page(first_gfn + at // 4096), at % 4096

    def send(self, data: bytes) -> None:
        for number, byte in enumerate(data):
            page, at = self._data(1 + (1 << ORDER) // 2, self.indices[OUT_PROD] + number)
            page[at] = byte
        self.indices[OUT_PROD] = (self.indices[OUT_PROD] + len(data)) & 0xFFFF_FFFF
        self.guest.events.send(self.port)

    def receive(self) -> tuple[int, int, bytes]:
        """The next answer, which has to be there as a whole: type, tag, body."""
        wait(lambda: self.indices[IN_PROD] != self.indices[IN_CONS] or bool(self.failures))
        assert not self.failures
        waiting = (self.indices[IN_PROD] - self.indices[IN_CONS]) & 0xFFFF_FFFF
        data = bytearray()
        for number in range(waiting):
            page, at = self._data(1, self.indices[IN_CONS] + number)
            data.append(page[at])
        size, kind, tag = HEADER.unpack_from(data)
        assert size <= waiting
        self.indices[IN_CONS] = (self.indices[IN_CONS] + size) & 0xFFFF_FFFF
        return kind, tag, bytes(data[HEADER.size : size])

    def close(self) -> None:
        done: list[bool] = []
        self.mover.stop(lambda: done.append(True))
        wait(lambda: bool(done))
        assert self.guest.in_use() == []


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Frontend]:
    made = Frontend(tmp_path)
    yield made
    made.close()


def test_a_guest_attaches_by_any_name_and_reads_a_file(front: Frontend, tmp_path: Path) -> None:
    content = bytes(range(256)) * 12
    (tmp_path / "file").write_bytes(content)
    for data in (VERSION, attach(), message(TWALK, 2, struct.pack("<IIH", 0, 1, 1) + text(b"file"))):
        front.send(data)
        front.receive()
    front.send(message(TLOPEN, 3, struct.pack("<II", 1, 0)))
    assert front.receive()[1] == 3
    for turn in range(20):  # round and round the ring
        front.send(message(TREAD, turn, struct.pack("<IQI", 1, 0, 8000)))
        kind, tag, body = front.receive()
        assert (kind, tag, body[4:]) == (RREAD, turn, content)


def test_a_message_may_come_in_pieces_and_several_at_once(front: Frontend) -> None:
    for byte in VERSION:
        front.send(bytes([byte]))
    assert front.receive()[0] == RVERSION
    front.send(attach(7)[:20])
    time.sleep(0.01)
    front.send(attach(7)[20:])
    assert front.receive()[:2] == (RATTACH, 7)
    front.send(b"".join(message(TWALK, tag, struct.pack("<IIH", 0, tag, 0)) for tag in (8, 9)))
    assert {front.receive()[:2] for _ in range(2)} == {(TWALK + 1, 8), (TWALK + 1, 9)}


def test_a_read_only_share_is_not_written(tmp_path: Path) -> None:
    front = Frontend(tmp_path, read_only=True)
    for data in (VERSION, attach()):
        front.send(data)
        front.receive()
    front.send(message(72, 3, struct.pack("<I", 0) + text(b"new") + struct.pack("<II", 0o755, 0)))  # mkdir
    assert front.receive()[0] == RLERROR
    assert list(tmp_path.iterdir()) == []
    front.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEADER.pack(3, TVERSION, 0), "a message of 3 bytes"),
        (HEADER.pack(1 << 31, TVERSION, 0), "a message of 2147483648 bytes"),
        (HEADER.pack(1 << 20, TATTACH, 0), "an attach message of 1048576 bytes"),
        (message(TATTACH, 0, bytes(8) + b"\xff\xff" + bytes(20)), "not whole"),
    ],
)
def test_a_front_end_that_breaks_the_protocol_loses_its_share(front: Frontend, data: bytes, reason: str) -> None:
    front.send(data)
    wait(lambda: bool(front.failures))
    assert reason in front.failures[0]


def test_an_index_that_cannot_be_ends_the_share(front: Frontend) -> None:
    front.indices[OUT_PROD] = HALF + 1
    front.guest.events.send(front.port)
    wait(lambda: bool(front.failures))
    assert f"{HALF + 1} bytes in a ring of {HALF}" in front.failures[0]


def test_a_server_that_ends_closes_the_share(front: Frontend) -> None:
    front.send(VERSION)
    front.receive()
    front.mover._server._process.kill()
    wait(lambda: bool(front.failures))
    assert front.failures == ["diod has ended with SIGKILL"]


@pytest.mark.parametrize("order", [0, 10, 0xFFFF_FFFF])
def test_a_ring_has_a_size_that_can_be(order: int) -> None:
    guest = Guest()
    guest.memory.page(0)[128:132] = struct.pack("<I", order)
    with pytest.raises(RingBroken):
        ShareRing(GrantedPages(guest.grants, guest.memory), guest.grant(0))
    assert guest.in_use() == []


def test_a_ring_of_pages_that_were_not_granted_is_refused() -> None:
    guest = Guest()
    guest.memory.page(0)[128:140] = struct.pack("<III", 1, guest.grant(1), 999)
    with pytest.raises(XenError):
        ShareRing(GrantedPages(guest.grants, guest.memory), guest.grant(0))
    assert guest.in_use() == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_are_answered_or_end_the_share(tmp_path: Path, data: bytes) -> None:
    front = Frontend(tmp_path)
    front.send(VERSION)
    front.receive()
    front.send(data)
    time.sleep(0.005)
    front.close()
    assert len(front.failures) <= 1


def test_options_of_a_share(tmp_path: Path) -> None:
    share = parse_share(f"{tmp_path},tag=mine,ro", "share0")
    assert (share.path, share.tag, share.read_only) == (tmp_path, "mine", True)
    assert parse_share(str(tmp_path), "share0").tag == "share0"
    for wrong in ("", "/nonexistent/x", f"{tmp_path},rw", f"{tmp_path},tag=a b", f"{tmp_path},tag="):
        with pytest.raises(UsageError):
            parse_share(wrong, "share0")


def test_a_server_that_cannot_be_started_leaves_no_grant_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Front:
        """A front end whose keys are there."""

        def __init__(self, guest: Guest) -> None:
            self.pages = GrantedPages(guest.grants, guest.memory)
            self.keys = {"version": "1", "num-rings": "1", "ring-ref0": str(ref)}

        def text(self, key: str) -> str:
            return self.keys.get(key, "")

        def number(self, key: str) -> int:
            return int(self.keys[key])

    guest = Guest()
    guest.memory.page(0)[128:140] = struct.pack("<III", 1, guest.grant(1), guest.grant(2))
    ref = guest.grant(0)
    backend = ShareBackend(Share(tmp_path, "tag"), 0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ninep_backend, "start_server", refuse)
    with pytest.raises(OSError, match="Too many"):
        backend.connect(Front(guest), lambda why: None)  # type: ignore[arg-type]
    assert guest.in_use() == []
