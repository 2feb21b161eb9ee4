"""Virtio: the split ring against a hostile driver, the PCI transport's registers, a disk and a card."""

import os
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakes import Bell, Bytes
from vmm.devices.block.image import RawImage
from vmm.devices.block.virtio import BlockDevice
from vmm.devices.net.offload import HEADER
from vmm.devices.net.spec import parse_net
from vmm.devices.net.virtio import NetDevice
from vmm.devices.virtio.pci import VirtioPci, Wiring
from vmm.devices.virtio.ring import Place, QueueBroken, VirtQueue, split
from vmm.xenabi.values import Gpa

MEMORY_BYTES = 1 << 16
DESCRIPTORS, AVAILABLE, USED, DATA = 0x0000, 0x1000, 0x2000, 0x4000
ENTRIES = 8
NEXT, WRITE, INDIRECT = 1, 2, 4
PLACE = Place(ENTRIES, DESCRIPTORS, AVAILABLE, USED)


class Fault(Exception):
    """No memory there."""


class Memory:
    """64 KiB from 0 on."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(MEMORY_BYTES))

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        if gpa + size_bytes > MEMORY_BYTES:
            raise Fault(hex(gpa))
        return self.data[gpa : gpa + size_bytes]

    def shared(self, gpa: Gpa, size_bytes: int) -> Bytes:
        return Bytes(size_bytes)


class Driver:
    """The guest's side of a queue."""

    def __init__(self, memory: Memory | None = None, *, event_index: bool = False) -> None:
        self.memory = memory or Memory()
        self.queue = VirtQueue(self.memory, PLACE, Fault, event_index=event_index)
        self.offered = 0

    def describe(self, index: int, address: int, size: int, flags: int = 0, following: int = 0, table: int = 0) -> None:
        struct.pack_into("<QIHH", self.memory.data, table + 16 * index, address, size, flags, following)

    def offer(self, *heads: int) -> None:
        for head in heads:
            struct.pack_into("<H", self.memory.data, AVAILABLE + 4 + 2 * (self.offered % ENTRIES), head)
            self.offered = (self.offered + 1) & 0xFFFF
        struct.pack_into("<H", self.memory.data, AVAILABLE + 2, self.offered)

    def used(self) -> list[tuple[int, int]]:
        (count,) = struct.unpack_from("<H", self.memory.data, USED + 2)
        return [struct.unpack_from("<II", self.memory.data, USED + 4 + 8 * (n % ENTRIES)) for n in range(count)]


def test_a_chain_is_taken_apart_into_what_is_read_and_what_is_written() -> None:
    driver = Driver()
    driver.describe(3, DATA, 16, NEXT, 5)
    driver.describe(5, DATA + 0x100, 512, NEXT | WRITE, 6)
    driver.describe(6, DATA + 0x400, 1, WRITE)
    driver.offer(3)
    (chain,) = driver.queue.take()
    sizes = [[len(view) for view in views] for views in (chain.readable, chain.writable)]
    assert (chain.head, sizes) == (3, [[16], [512, 1]])
    assert driver.queue.take() == []


def test_a_chain_may_be_in_a_table_of_its_own() -> None:
    driver = Driver()
    driver.describe(0, DATA, 32, INDIRECT)
    driver.describe(0, DATA + 0x100, 4, NEXT, 1, table=DATA)
    driver.describe(1, DATA + 0x200, 8, WRITE, table=DATA)
    driver.offer(0)
    (chain,) = driver.queue.take()
    assert (len(chain.readable[0]), len(chain.writable[0])) == (4, 8)


def test_what_is_given_back_is_seen_after_the_push_and_asks_for_an_interrupt() -> None:
    driver = Driver()
    driver.describe(0, DATA, 4, WRITE)
    driver.offer(0)
    (chain,) = driver.queue.take()
    driver.queue.give_back(chain, 4)
    assert driver.used() == []
    assert driver.queue.push()
    assert driver.used() == [(0, 4)]
    struct.pack_into("<H", driver.memory.data, AVAILABLE, 1)  # no interrupts
    driver.offer(0)
    driver.queue.give_back(driver.queue.take()[0], 4)
    assert not driver.queue.push()


def test_with_event_indices_the_driver_says_at_which_it_wants_to_be_told() -> None:
    driver = Driver(event_index=True)
    driver.describe(0, DATA, 4, WRITE)
    struct.pack_into("<H", driver.memory.data, AVAILABLE + 4 + 2 * ENTRIES, 1)
    told = []
    for _ in range(3):
        driver.offer(0)
        driver.queue.give_back(driver.queue.take()[0], 0)
        told.append(driver.queue.push())
    assert told == [False, True, False]
    assert not driver.queue.rearm()
    assert struct.unpack_from("<H", driver.memory.data, USED + 4 + 8 * ENTRIES) == (3,)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(0, DATA, 4, NEXT, 0)], "without end"),
        ([(0, DATA, 4, NEXT, 9)], "descriptor 9 of 8"),
        ([(0, MEMORY_BYTES - 2, 4, 0, 0)], "0xfffe"),
        ([(0, 1 << 60, 4, 0, 0)], "0x1000"),
        ([(0, DATA, 4, WRITE | NEXT, 1), (1, DATA, 4, 0, 0)], "behind one to write"),
        ([(0, DATA, 0, INDIRECT, 0)], "indirect"),
        ([(0, DATA, 16, INDIRECT | NEXT, 0)], "indirect"),
    ],
)
def test_a_chain_that_cannot_be_breaks_the_queue(rows: list[tuple[int, int, int, int, int]], reason: str) -> None:
    driver = Driver()
    for row in rows:
        driver.describe(*row)
    driver.offer(0)
    with pytest.raises(QueueBroken, match=reason):
        driver.queue.take()


def test_an_index_beyond_the_queue_breaks_it() -> None:
    driver = Driver()
    driver.offered = ENTRIES + 1
    driver.offer()
    with pytest.raises(QueueBroken, match="9 ahead"):
        driver.queue.take()


def test_an_indirect_table_within_another_breaks_the_queue() -> None:
    driver = Driver()
    driver.describe(0, DATA, 16, INDIRECT)
    driver.describe(0, DATA, 16, INDIRECT, table=DATA)
    driver.offer(0)
    with pytest.raises(QueueBroken, match="indirect"):
        driver.queue.take()


def test_a_queue_where_there_is_no_memory_is_refused() -> None:
    with pytest.raises(QueueBroken, match="no memory"):
        VirtQueue(Memory(), Place(ENTRIES, MEMORY_BYTES, AVAILABLE, USED), Fault, event_index=False)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1) | st.integers(0, MEMORY_BYTES),
            st.integers(0, 2**32 - 1) | st.integers(0, 64),
            st.integers(0, 7),
            st.integers(0, ENTRIES),
        ),
        max_size=ENTRIES,
    ),
    st.integers(0, ENTRIES + 1),
    st.booleans(),
)
def test_nothing_that_a_driver_puts_into_a_queue_does_harm(
    rows: list[tuple[int, int, int, int]], offered: int, event_index: bool
) -> None:
    driver = Driver(event_index=event_index)
    for index, row in enumerate(rows):
        driver.describe(index, *row)
    driver.offer(*range(offered))
    try:
        for _ in range(3):
            for chain in driver.queue.take():
                driver.queue.give_back(chain, 1)
            driver.queue.push()
            driver.queue.rearm()
    except QueueBroken as error:
        assert str(error)


def test_split_copies_a_head_across_views() -> None:
    views = [memoryview(bytearray(b"abc")), memoryview(bytearray(b"defg"))]
    head, rest = split(views, 5)
    assert (head, [bytes(view) for view in rest]) == (b"abcde", [b"fg"])


# ------------------------------------------------------------------------------------------- transport


class Line:
    """An interrupt that can be waited for."""

    def __init__(self) -> None:
        self.sent = threading.Semaphore(0)

    def route(self, message: tuple[int, int] | None) -> None:
        pass

    def send(self) -> None:
        self.sent.release()

    def close(self) -> None:
        pass


class Machine:
    """A virtio function, and a driver that sets it up as Linux's does."""

    def __init__(self, device: "BlockDevice | NetDevice") -> None:
        self.lines: list[Line] = []
        self.notified: set[tuple[int, int]] = set()
        self.memory = Memory()
        self.function = VirtioPci(device, Wiring(self.memory, Fault, self.new_line, self.notify_by))
        self.function.set_bar(0, 0xF000_0000)
        self.function.enable_memory()
        self.function.moved(self.function.places())

    def new_line(self) -> Line:
        self.lines.append(Line())
        return self.lines[-1]

    def notify_by(self, address: int, fd: int, wanted: bool) -> None:
        (self.notified.add if wanted else self.notified.discard)((address, fd))

    def read(self, offset: int, size: int) -> int:
        return self.function.read_mmio(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.function.write_mmio(offset, size, value)

    def status(self, *bits: int) -> int:
        for bit in bits:
            self.write(20, 1, self.read(20, 1) | bit)
        return self.read(20, 1)

    def negotiate(self, features: int = 1 << 32) -> int:
        self.status(1, 2)
        for half in (0, 1):
            self.write(8, 4, half)
            self.write(12, 4, features >> 32 * half & 0xFFFF_FFFF)
        return self.status(8)

    def start(self, place: Place = PLACE, queues: Sequence[int] = (0,)) -> None:
        self.negotiate()
        self.function._msix._function.write_config(self.function._msix._control_at, 2, 1 << 15)  # type: ignore[union-attr]
        for vector in range(len(self.lines)):
            self.function._msix.write_mmio(16 * vector + 12, 4, 0)
        for number in queues:
            self.write(22, 2, number)
            self.write(24, 2, place.entries)
            self.write(26, 2, number + 1)
            for offset, address in ((32, place.descriptors), (40, place.available), (48, place.used)):
                self.write(offset, 4, address + 0x8000 * number & 0xFFFF_FFFF)
                self.write(offset + 4, 4, 0)
            self.write(28, 2, 1)
        self.status(4)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def disk(image: Path) -> "Callable[..., BlockDevice]":
    def make(read_only: bool = False, queues: int = 1) -> BlockDevice:
        raw = RawImage(image, read_only=read_only, checked=False)
        return BlockDevice("disk", raw, queues, raw.close, discard=True, zeroes=True)

    return make


def test_the_capabilities_lead_to_the_registers(disk: Callable[..., BlockDevice]) -> None:
    function = Machine(disk()).function
    kinds, at = {}, function.get(0x34, 1)
    while at:
        if function.get(at, 1) == 0x09:
            kinds[function.get(at + 3, 1)] = (function.get(at + 4, 1), function.get(at + 8, 4))
        at = function.get(at + 1, 1)
    assert kinds == {1: (0, 0), 2: (0, 0x3000), 3: (0, 0x1000), 4: (0, 0x2000), 5: (0, 0)}
    assert function.get(0, 4) == 0x1042_1AF4


def test_the_window_in_configuration_space_leads_there_too(disk: Callable[..., BlockDevice]) -> None:
    machine = Machine(disk(queues=3))
    function, at = machine.function, machine.function._window_at
    function.write_config(at + 8, 4, 18)
    function.write_config(at + 12, 4, 2)
    assert function.read_config(at + 16, 2) == 3
    function.write_config(at + 12, 4, 4)  # another length than the access has
    assert function.read_config(at + 16, 2) == 0


def test_features_that_were_not_offered_or_an_old_driver_are_refused(disk: Callable[..., BlockDevice]) -> None:
    assert not Machine(disk()).negotiate(1 << 32 | 1 << 50) & 8


def test_a_driver_from_before_version_1_is_refused(disk: Callable[..., BlockDevice]) -> None:
    assert not Machine(disk()).negotiate(0) & 8


def test_a_queue_outside_memory_needs_a_reset(disk: Callable[..., BlockDevice]) -> None:
    machine = Machine(disk())
    machine.start(Place(ENTRIES, 0xFFFF_F000, AVAILABLE, USED))
    assert machine.status() & 64
    machine.write(20, 1, 0)
    assert machine.status() == 0


def test_a_driver_that_resets_the_device_may_start_it_again(disk: Callable[..., BlockDevice]) -> None:
    machine = Machine(disk())
    machine.start()
    assert len(machine.notified) == 1
    machine.write(20, 1, 0)
    while machine.status():
        pass
    assert not machine.notified
    machine.memory.data[:0x3000] = bytes(0x3000)
    machine.start()
    assert machine.status() == 15
    machine.function.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=60))
def test_no_register_that_is_written_at_random_does_harm(writes: list[tuple[int, int, int]]) -> None:
    class Nothing:
        size_bytes, sector_bytes, read_only = 1 << 20, 512, True

        def read(self, views: list[memoryview], offset_bytes: int) -> None: ...
        def write(self, views: list[memoryview], offset_bytes: int) -> None: ...
        def flush(self) -> None: ...
        def discard(self, offset_bytes: int, size_bytes: int) -> None: ...

    machine = Machine(BlockDevice("disk", Nothing(), 2, lambda: None, discard=False, zeroes=False))
    for offset, size, value in writes:
        machine.write(offset % 64 if offset & 1 else offset, size, value & (1 << 8 * size) - 1)
        machine.read(offset, size)
    machine.function.close()


# ------------------------------------------------------------------------------------------------ disk

IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
STATUS_AT = DATA + 0x3000


class Disk:
    """A running disk and requests to it."""

    def __init__(self, device: BlockDevice) -> None:
        self.machine = Machine(device)
        self.machine.start()
        self.driver = Driver.__new__(Driver)
        self.driver.memory, self.driver.offered = self.machine.memory, 0

    def request(self, kind: int, sector: int, data: bytes = b"", into: int = 0) -> tuple[int, bytes]:
        """Its status, and what it has read."""
        memory, describe = self.machine.memory.data, self.driver.describe
        struct.pack_into("<IIQ", memory, DATA, kind, 0, sector)
        memory[DATA + 0x1000 :][: len(data)] = data
        describe(0, DATA, 16, NEXT, 1)
        describe(1, DATA + 0x1000, len(data) or into, NEXT | (0 if data else WRITE), 2)
        if not data and not into:
            describe(0, DATA, 16, NEXT, 2)
        describe(2, STATUS_AT, 1, WRITE)
        memory[STATUS_AT] = 0xFF
        self.driver.offer(0)
        self.machine.write(0x3000, 2, 0)
        assert self.machine.lines[1].sent.acquire(timeout=10)
        return memory[STATUS_AT], bytes(memory[DATA + 0x1000 :][:into])

    def close(self) -> None:
        self.machine.function.close()


def test_a_disk_reads_writes_and_says_its_name(disk: Callable[..., BlockDevice], image: Path) -> None:
    running = Disk(disk())
    before = image.read_bytes()
    assert running.request(IN, 7, into=1024) == (0, before[7 * 512 : 9 * 512])
    assert running.request(OUT, 3, b"x" * 512)[0] == 0
    assert running.request(FLUSH, 0)[0] == 0
    assert running.request(GET_ID, 0, into=20) == (0, b"disk-0".ljust(20, b"\0"))
    running.close()
    assert image.read_bytes()[3 * 512 : 4 * 512] == b"x" * 512


def test_a_discarded_range_reads_as_zeros(disk: Callable[..., BlockDevice]) -> None:
    running = Disk(disk())
    assert running.request(DISCARD, 0, struct.pack("<QII", 8, 8, 0))[0] == 0
    assert running.request(IN, 8, into=4096) == (0, bytes(4096))
    assert running.request(ZEROES, 0, struct.pack("<QII", 2040, 16, 0))[0] == 1  # beyond the end
    running.close()


@pytest.mark.parametrize(("kind", "sector", "status"), [(OUT, 2048, 1), (OUT, 1 << 60, 1), (99, 0, 2)])
def test_a_request_that_cannot_be_gets_an_error_and_the_next_goes_on(
    disk: Callable[..., BlockDevice], kind: int, sector: int, status: int
) -> None:
    running = Disk(disk())
    assert running.request(kind, sector, b"x" * 512)[0] == status
    assert running.request(FLUSH, 0)[0] == 0
    running.close()


def test_a_read_only_disk_refuses_writes(disk: Callable[..., BlockDevice]) -> None:
    running = Disk(disk(read_only=True))
    assert running.request(OUT, 0, b"x" * 512)[0] == 1
    running.close()


def test_a_file_that_was_cut_short_gives_errors(disk: Callable[..., BlockDevice], image: Path) -> None:
    running = Disk(disk())
    os.truncate(image, 4096)
    assert running.request(IN, 100, into=512)[0] == 1
    assert running.request(IN, 0, into=512)[0] == 0
    running.close()


# ------------------------------------------------------------------------------------------------ card


class PipeWire:
    """A wire to a test: packets out are kept, packets in come from a list."""

    offloads = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waiting: list[bytes] = []
        self.read_end, self.write_end = os.pipe()

    def fileno(self) -> int:
        return self.read_end

    def send(self, header: bytes, views: Sequence[memoryview]) -> bool:
        self.sent.append(b"".join(map(bytes, views)))
        return True

    def receive(self, header: bytearray, views: Sequence[memoryview]) -> int | None:
        if not self.waiting:
            return None
        os.read(self.read_end, 1)
        packet = self.waiting.pop(0)
        header[:] = bytes(HEADER.size)
        views[0][: len(packet)] = packet
        return len(packet)

    def close(self) -> None: ...


class PipeNetwork:
    offloads = False

    def __init__(self) -> None:
        self.wire = PipeWire()

    def wires(self, queues: int, offload: int) -> list[PipeWire]:
        return [self.wire]

    def unplug(self) -> None: ...
    def close(self) -> None: ...


def test_a_card_passes_packets_both_ways() -> None:
    network = PipeNetwork()
    machine = Machine(NetDevice(parse_net("user,mac=52:54:00:12:34:56,mtu=1400"), network))
    assert bytes(machine.read(0x2000 + at, 1) for at in range(6)) == bytes.fromhex("525400123456")
    assert machine.read(0x200A, 2) == 1400
    machine.start(queues=(0, 1))
    receive, transmit = machine.memory.data, machine.memory.data[0x8000:]
    struct.pack_into("<QIHH", transmit, DESCRIPTORS, DATA, 12 + 60, 0, 0)
    machine.memory.data[DATA + 12 : DATA + 72] = b"p" * 60
    struct.pack_into("<HHH", transmit, AVAILABLE, 0, 1, 0)
    struct.pack_into("<QIHH", receive, DESCRIPTORS, DATA + 0x1000, 2048, WRITE, 0)
    struct.pack_into("<HHH", receive, AVAILABLE, 0, 1, 0)
    machine.write(0x3004, 2, 1)
    assert machine.lines[2].sent.acquire(timeout=10)
    assert network.wire.sent == [b"p" * 60]
    network.wire.waiting.append(b"q" * 70)
    os.write(network.wire.write_end, b"x")
    assert machine.lines[1].sent.acquire(timeout=10)
    assert struct.unpack_from("<HHII", receive, USED) == (0, 1, 0, 12 + 70)
    assert bytes(receive[DATA + 0x1000 :][:82]) == bytes(10) + b"\x01\x00" + b"q" * 70
    machine.function.close()


def test_a_card_without_both_queues_needs_a_reset() -> None:
    machine = Machine(NetDevice(parse_net("user"), PipeNetwork()))
    machine.start(queues=(0,))
    assert machine.status() & 64


class SlowDevice:
    """A disk whose server takes its time to end."""

    number, pci_class, features, queues, config = 2, 0x010000, 0, 1, bytes(8)

    def __init__(self) -> None:
        self.ends: list[Callable[[], None]] = []
        self.bell = Bell()
        self.opened = self.released = 0

    def open(self, features: int, queues: object) -> "list[SlowDevice]":
        self.opened += 1
        return [self]

    def start(self) -> None:
        pass

    def stop(self, done: Callable[[], None]) -> None:
        self.ends.append(done)

    def closed(self) -> None:
        pass

    def release(self) -> None:
        assert not self.ends, "its file is still in use"
        self.released += 1


def test_a_second_reset_waits_for_the_first() -> None:
    device = SlowDevice()
    machine = Machine(device)  # type: ignore[arg-type]
    machine.start()
    machine.write(20, 1, 0)
    assert machine.status() != 0, "its server has not ended yet"
    machine.write(20, 1, 0)
    machine.write(20, 1, 3)
    assert machine.status() == 15, "nothing is heeded until it has"
    device.ends.pop()()
    assert machine.status() == 0
    machine.start()
    assert (machine.status(), device.opened) == (15, 2)
    machine.write(20, 1, 0)
    closing = threading.Thread(target=machine.function.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive(), "it waits for the server that is ending"
    device.ends.pop()()
    closing.join(5)
    assert device.released == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)), max_size=40),
    st.booleans(),
)
def test_a_function_that_is_given_out_and_taken_back_shows_what_it_showed(
    writes: list[tuple[int, int, int]], started: bool
) -> None:
    first, second = Machine(SlowDevice()), Machine(SlowDevice())  # type: ignore[arg-type]
    if started:
        first.start()
    else:
        for offset, size, value in writes:
            if offset != 20:
                first.write(offset, size, value & (1 << 8 * size) - 1)
    second.function.restore(first.function.record())
    for offset, size in [(0, 4), (4, 4), (8, 4), (12, 4), (16, 2), (20, 1), (22, 2), (24, 2), (26, 2), (28, 2), (32, 4)]:
        assert second.read(offset, size) == first.read(offset, size)
    assert [second.function.read_config(at, 4) for at in range(0, 256, 4)] == [
        first.function.read_config(at, 4) for at in range(0, 256, 4)
    ]
    assert second.function.record() == first.function.record()


def test_a_queue_that_is_given_out_and_taken_back_goes_on_where_it_was() -> None:
    first = Driver()
    first.describe(0, DATA, 4, WRITE)
    first.offer(0, 0)
    first.queue.give_back(first.queue.take()[0], 4)
    first.queue.push()
    second = VirtQueue(first.memory, PLACE, Fault, event_index=False)
    second.restore(first.queue.record())
    first.offer(0)
    assert [chain.head for chain in second.take()] == [0]
