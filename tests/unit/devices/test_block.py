"""The vbd back end: `--disk`, its image files, and the requests of a front end, honest or not."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.frontend import Guest, Ring, wait
from vmm.devices.block.backend import open_disk
from vmm.devices.block.image import RawImage
from vmm.devices.block.protocol import LAYOUTS, SEGMENT, Op, Status
from vmm.devices.block.queue import BlockQueue
from vmm.devices.block.spec import device_name, device_number, parse_disk
from vmm.devices.bus.xenbus import Bound, Xenbus
from vmm.devices.ring.granted import GrantedPages
from vmm.errors import PyvmmError, UsageError
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.values import Domid
from vmm.xenstore.server import Store
from vmm.xenstore.service import Xenstore

SECTORS = 256
PATTERN = bytes(range(256)) * 2 * SECTORS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(PATTERN)
    return path


class Frontend:
    """A front end with one ring at gfn 0 and data pages from gfn 1 on."""

    def __init__(self, file: Path, *, persistent: bool = False, read_only: bool = False, abi: Abi = Abi.X86_64) -> None:
        self.guest = Guest()
        self.abi = abi
        self.layout = LAYOUTS[abi]
        self.image = RawImage(file, read_only=read_only)
        self.failures: list[str] = []
        self.ring = Ring(self.guest.memory.page(0), self.layout.entry_bytes)
        self.ring_ref = self.guest.grant(0)
        self.queue = BlockQueue(
            "xvda-0", self.image, GrantedPages(self.guest.grants, self.guest.memory), [self.ring_ref], self.layout,
            persistent=persistent, failed=self.failures.append,
        )  # fmt: skip
        port = self.guest.events.alloc_unbound(Domid(0))
        bell = self.queue.bell
        self.guest.events.connect(port, Domid(0), bell)
        self.port = port
        self.queue.start(Bound(self.guest.events, port, bell))

    def request(self, op: int, sector: int, segments: list[tuple[int, int, int]], number: int = 7) -> int:
        """Ask, and wait for the answer: its status."""
        raw = self.layout.request.pack(op, len(segments), number, sector)
        return self.answer(raw.ljust(self.layout.segments_at, b"\0") + b"".join(SEGMENT.pack(*s) for s in segments))

    def answer(self, raw: bytes) -> int:
        self.ring.put(raw)
        self.guest.events.send(self.port)
        deadline = time.monotonic() + 10
        while not (found := self.ring.responses(self.layout.response.size)):
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.0005)
        assert len(found) == 1
        _, _, status = self.layout.response.unpack(found[0])
        return int(status)

    def close(self) -> None:
        done: list[bool] = []
        self.queue.stop(lambda: done.append(True))
        while not done:
            time.sleep(0.0005)
        self.image.close()
        assert self.guest.in_use() == []


@pytest.fixture
def front(file: Path) -> Iterator[Frontend]:
    made = Frontend(file)
    yield made
    made.close()


@pytest.mark.parametrize("abi", list(Abi))
def test_sectors_are_read_into_the_guests_own_pages(file: Path, abi: Abi) -> None:
    front = Frontend(file, abi=abi)
    refs = [front.guest.grant(1), front.guest.grant(2)]
    assert front.request(Op.READ, 3, [(refs[0], 6, 7), (refs[1], 0, 7)]) == Status.OKAY
    data = bytes(front.guest.memory.page(1)[6 * 512 :]) + bytes(front.guest.memory.page(2))
    assert data == PATTERN[3 * 512 : 13 * 512]
    assert front.guest.in_use() == [front.ring_ref]
    front.close()


def test_written_sectors_are_in_the_file(front: Frontend, file: Path) -> None:
    front.guest.memory.page(1)[:] = b"w" * 4096
    ref = front.guest.grant(1, readonly=True)
    assert front.request(Op.WRITE, 8, [(ref, 2, 3)]) == Status.OKAY
    assert front.request(Op.FLUSH_DISKCACHE, 0, []) == Status.OKAY
    assert file.read_bytes() == PATTERN[: 8 * 512] + b"w" * 1024 + PATTERN[10 * 512 :]
    assert front.request(Op.WRITE_BARRIER, 0, [(ref, 0, 7)]) == Status.OKAY
    assert front.request(Op.WRITE_BARRIER, 0, []) == Status.OKAY
    assert file.read_bytes()[:4096] == b"w" * 4096


def test_indirect_requests_carry_more_segments(front: Frontend) -> None:
    refs = [front.guest.grant(gfn) for gfn in range(2, 34)]
    segments = b"".join(SEGMENT.pack(ref, 0, 7) for ref in refs)
    front.guest.memory.page(1)[: len(segments)] = segments
    raw = front.layout.indirect.pack(Op.INDIRECT, Op.READ, 32, 7, 0, front.guest.grant(1, readonly=True), *[0] * 7)
    assert front.answer(raw) == Status.OKAY
    assert b"".join(bytes(front.guest.memory.page(gfn)) for gfn in range(2, 34)) == PATTERN
    assert front.guest.in_use() == [front.ring_ref]
    for op, count in ((Op.INDIRECT, 1), (Op.FLUSH_DISKCACHE, 1), (Op.READ, 0), (Op.READ, 257), (Op.READ, 0xFFFF)):
        assert front.answer(front.layout.indirect.pack(Op.INDIRECT, op, count, 7, 0, *[0] * 8)) == Status.ERROR


def test_discard_punches_a_hole(file: Path, front: Frontend) -> None:
    assert front.answer(front.layout.discard.pack(Op.DISCARD, 0, 7, 8, 16)) == Status.OKAY
    assert file.read_bytes() == PATTERN[: 8 * 512] + bytes(16 * 512) + PATTERN[24 * 512 :]
    assert front.answer(front.layout.discard.pack(Op.DISCARD, 0, 7, SECTORS - 1, 2)) == Status.ERROR
    assert front.answer(front.layout.discard.pack(Op.DISCARD, 0, 7, 1 << 63, 1 << 63)) == Status.ERROR


def test_persistent_grants_stay_mapped_until_the_end(file: Path) -> None:
    front = Frontend(file, persistent=True)
    ref, readonly = front.guest.grant(1), front.guest.grant(2, readonly=True)
    assert front.request(Op.WRITE, 0, [(ref, 0, 7), (readonly, 0, 7)]) == Status.OKAY
    assert front.guest.in_use() == [front.ring_ref, ref]
    assert front.request(Op.READ, 0, [(ref, 0, 0)]) == Status.OKAY
    assert front.request(Op.READ, 0, [(readonly, 0, 0)]) == Status.ERROR
    front.close()


def test_what_cannot_be_meant_is_answered_with_an_error(front: Frontend) -> None:
    ref = front.guest.grant(1)
    for op, sector, segments in (
        (Op.READ, SECTORS, [(ref, 0, 0)]),  # behind the end
        (Op.READ, SECTORS - 1, [(ref, 0, 1)]),
        (Op.READ, (1 << 64) - 1, [(ref, 0, 0)]),
        (Op.READ, 0, [(ref, 1, 0)]),  # a segment that ends before it begins
        (Op.READ, 0, [(ref, 0, 8)]),  # or runs out of its page
        (Op.READ, 0, []),
        (Op.WRITE, 0, [(ref, 0, 0), (999, 0, 0)]),  # not granted
        (Op.READ, 0, [(front.guest.grant(2, readonly=True), 0, 0)]),
        (Op.READ, 0, [(front.guest.grant(3, to=5), 0, 0)]),
        (Op.READ, 0, [(front.guest.grant(1 << 30), 0, 0)]),  # no such page
    ):
        assert front.request(op, sector, segments[:11] if len(segments) < 12 else segments[1:]) == Status.ERROR, (
            op,
            sector,
        )
    assert front.request(4, 0, []) == Status.EOPNOTSUPP
    assert front.request(Op.READ, 0, [(ref, 0, 0)]) == Status.OKAY
    assert front.guest.in_use() == [front.ring_ref]


def test_a_read_only_disk_is_not_written(file: Path) -> None:
    front = Frontend(file, read_only=True)
    assert front.request(Op.WRITE, 0, [(front.guest.grant(1), 0, 7)]) == Status.ERROR
    assert front.answer(front.layout.discard.pack(Op.DISCARD, 0, 7, 0, 8)) == Status.ERROR
    front.close()
    assert file.read_bytes() == PATTERN


def test_a_file_that_became_shorter_is_an_error_to_the_guest(front: Frontend, file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(4096)
    ref = front.guest.grant(1)
    assert front.request(Op.READ, 4, [(ref, 0, 7)]) == Status.ERROR
    assert front.request(Op.READ, 0, [(ref, 0, 7)]) == Status.OKAY


def test_a_broken_ring_ends_the_queue_and_nothing_else(front: Frontend) -> None:
    front.ring.indices[0] = 5000
    front.guest.events.send(front.port)
    deadline = time.monotonic() + 10
    while not front.failures and time.monotonic() < deadline:
        time.sleep(0.0005)
    assert front.failures == ["the front end broke its ring: a request index 5000 ahead, in a ring of 32"]
    front.ring.indices[0] = 0
    front.guest.events.send(front.port)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.binary(min_size=32, max_size=112), min_size=1, max_size=8), abi=st.sampled_from(list(Abi)))
def test_any_request_is_answered_once(tmp_path: Path, requests: list[bytes], abi: Abi) -> None:
    path = tmp_path / "disk"
    path.write_bytes(PATTERN)
    front = Frontend(path, abi=abi, persistent=True)
    for gfn in range(1, 40):
        front.guest.grant(gfn)
    for request in requests:
        front.answer(bytes([request[0] % 7]) + request[1:])
    front.close()
    assert path.stat().st_size == len(PATTERN)


# ------------------------------------------------------------------------------------- in xenstore

FRONT, BACK = "/local/domain/1/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712"


def announce(file: Path, second_ref: int | None) -> tuple[str, dict[str, str]]:
    """A front end with two queues says where they are: the back end's state then, and what it says of the disk."""
    guest, xenstore = Guest(), Xenstore()
    bus = Xenbus(xenstore, guest)
    bus.attach(open_disk(parse_disk(str(file), "xvda"), vcpus=2))
    ports = [guest.events.alloc_unbound(Domid(0)) for _ in range(2)]
    refs = guest.grant(0), guest.grant(1) if second_ref is None else second_ref

    def write(store: Store) -> None:
        store.write(f"{FRONT}/multi-queue-num-queues", "2")
        for number in range(2):
            store.write(f"{FRONT}/queue-{number}/ring-ref", str(refs[number]))
            store.write(f"{FRONT}/queue-{number}/event-channel", str(ports[number]))
        store.write(f"{FRONT}/state", "3")

    xenstore.run(write)
    wait(lambda: xenstore.run(lambda store: store.read(f"{BACK}/state")) in (b"4", b"5"))
    state = xenstore.run(lambda store: store.read(f"{BACK}/state"))
    keys = ("sectors", "sector-size", "info", "mode", "multi-queue-max-queues")
    said = {key: xenstore.run(lambda store, key=key: (store.read(f"{BACK}/{key}") or b"").decode()) for key in keys}
    if state == b"4":
        assert guest.in_use() == list(refs)
    bus.close()
    xenstore.close()
    assert guest.in_use() == []
    assert all(channel and channel.far is None for channel in map(guest.events.status, ports))
    return (state or b"").decode(), said


def test_a_disk_connects_with_several_queues_and_says_how_large_it_is(file: Path) -> None:
    state, said = announce(file, None)
    assert state == "4"
    assert said == {
        "sectors": str(SECTORS), "sector-size": "512", "info": "0", "mode": "w", "multi-queue-max-queues": "2",
    }  # fmt: skip
    RawImage(file).close()  # it has been let go


def test_a_queue_that_cannot_be_leaves_nothing_of_the_others(file: Path) -> None:
    state, said = announce(file, 999)
    assert (state, said["sectors"]) == ("5", "")
    RawImage(file).close()


# --------------------------------------------------------------------------------- files and options


def refusal(path: Path, **options: bool) -> str:
    with pytest.raises(PyvmmError) as error:
        RawImage(path, **options)
    return str(error.value)


def test_files_that_cannot_be_a_disk_are_refused_in_a_sentence(tmp_path: Path, file: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none")
    assert "neither a file nor a block device" in refusal(Path("/dev/null"))
    (tmp_path / "small").write_bytes(b"x")
    assert "less than a sector" in refusal(tmp_path / "small")
    (tmp_path / "q").write_bytes(b"QFI\xfb" + bytes(1024))
    assert "add `,format=qcow2`" in refusal(tmp_path / "q")
    RawImage(tmp_path / "q", checked=False).close()


def test_the_end_of_a_disk_that_is_no_whole_sector_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(1124))
    image = RawImage(path)
    assert image.size_bytes == 1024
    image.close()
    assert "left_out=100" in capfd.readouterr().err


def test_a_disk_has_one_writer_or_many_readers(file: Path) -> None:
    first = RawImage(file)
    assert "in use by another guest" in refusal(file)
    assert "in use by another guest" in refusal(file, read_only=True)
    first.close()
    readers = [RawImage(file, read_only=True) for _ in range(2)]
    assert "in use" in refusal(file)
    for reader in readers:
        reader.close()


def test_options_of_a_disk() -> None:
    disk = parse_disk("/a/b.img,ro,name=xvdc,direct,queues=2,nodiscard,format=raw", "xvda")
    assert (disk.path, disk.name, disk.number, disk.queues) == (Path("/a/b.img"), "xvdc", 51744, 2)
    assert (disk.read_only, disk.direct, disk.discard, disk.format) == (True, True, False, "raw")
    for text in ("", ",ro", "a,name=sda", "a,readonly", "a,queues=0", "a,queues=x", "a,format=iso", "a,name=xvda0"):
        with pytest.raises(UsageError):
            parse_disk(text, "xvda")


@pytest.mark.parametrize(("index", "name"), [(0, "xvda"), (25, "xvdz"), (26, "xvdaa"), (701, "xvdzz")])
def test_disks_are_named_in_order(index: int, name: str) -> None:
    assert device_name(index) == name


def test_numbers_are_those_of_xens_interface() -> None:
    numbers = {"xvda": 51712, "xvda1": 51713, "xvdp": 51952, "xvdq": 268439552, "xvda16": 268435472}
    assert {name: device_number(name) for name in numbers} == numbers


@pytest.mark.parametrize("abi", list(Abi))
def test_layouts_are_the_compilers(abi: Abi) -> None:
    layout = LAYOUTS[abi]
    facts = {
        "sizeof(union blkif_sring_entry)": layout.entry_bytes,
        "sizeof(struct blkif_response)": layout.response.size,
        "sizeof(struct blkif_request_segment)": SEGMENT.size,
        "offsetof(struct blkif_request, seg)": layout.segments_at,
        "offsetof(struct blkif_request, seg) ": layout.request.size,
        "offsetof(struct blkif_request, sector_number)": layout.request.size - 8,
        "offsetof(struct blkif_request_discard, nr_sectors)": layout.discard.size - 8,
        "offsetof(struct blkif_request_indirect, indirect_grefs)": layout.indirect.size - 32,
        "offsetof(struct blkif_request_indirect, sector_number)": layout.indirect.size - 32 - 12,
    }
    headers = "#include <stdint.h>\n#include <stddef.h>\n#include <xen/xen.h>\n#include <xen/io/blkif.h>\n"
    source = headers + "".join(f'_Static_assert({what} == {value}, "{what}");\n' for what, value in facts.items())
    mode = "-m64" if abi is Abi.X86_64 else "-m32"
    # The 32-bit C library's headers are not needed, nor always there.
    command = ["gcc", mode, "-ffreestanding", "-fsyntax-only", "-x", "c", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
