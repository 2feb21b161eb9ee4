"""GDB's remote protocol: framing under any input, the target description, answers to what no debugger would send."""

from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.observe.gdb.packets import INTERRUPT, MAX_PACKET_BYTES, Broken, Reader, frame
from vmm.observe.gdb.registers import Layout
from vmm.observe.gdb.stub import Detached, Killed, Stub
from vmm.observe.gdb.target import CannotReach, Hardware, Stop


class Target:
    """Two vCPUs and a page of memory at 0x1000."""

    def __init__(self) -> None:
        names = [register.regs for register in Layout(64).registers if register.regs] + ["rip"]
        segment = SimpleNamespace(base=0x55, selector=8)
        special: dict[str, Any] = dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs"), segment)
        special |= dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", "efer"), 7)
        self.vcpus = [
            SimpleNamespace(
                id=index,
                online=index == 0,
                kvm=SimpleNamespace(
                    regs=SimpleNamespace(**dict.fromkeys(names, 0x1122)),
                    sregs=SimpleNamespace(**special),
                    regs_changed=lambda: None,
                ),
            )
            for index in range(2)
        ]
        self.memory = bytearray(4096)
        self.ran: list[tuple[set[int], set[int]]] = []
        self.points: set[object] = set()
        self.stops: list[Stop] = []
        self.domain = SimpleNamespace(outcome=None)

    def stop(self) -> None:
        pass

    def run(self, steps: set[int], runs: set[int]) -> None:
        self.ran.append((steps, runs))

    def read(self, vcpu: int, address: int, size: int) -> bytes:
        if not 0x1000 <= address < 0x2000:
            raise CannotReach
        return bytes(self.memory[address - 0x1000 : address - 0x1000 + size])

    def write(self, vcpu: int, address: int, data: bytes) -> None:
        if not 0x1000 <= address <= 0x2000 - len(data):
            raise CannotReach
        self.memory[address - 0x1000 : address - 0x1000 + len(data)] = data

    def insert_software(self, vcpu: int, address: int) -> None:
        self.read(vcpu, address, 1)
        self.points.add(address)

    def remove_software(self, address: int, vcpu: int = 0) -> None:
        self.points.discard(address)

    def insert_hardware(self, vcpu: int, point: Hardware) -> bool:
        if len(self.points) == 4:
            return False
        self.points.add(point)
        return True

    def remove_hardware(self, point: Hardware) -> None:
        self.points.discard(point)


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.fixture
def stub(target: Target) -> Stub:
    return Stub(target)  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_packets_come_through_however_they_are_cut(payloads: list[bytes], piece: int) -> None:
    stream = b"".join(map(frame, payloads))
    reader, found = Reader(), []
    for start in range(0, len(stream), piece):
        found += reader.feed(stream[start : start + piece])
    assert found == payloads
    assert reader.acks == b"+" * len(payloads)


@given(st.binary(max_size=500))
def test_garbage_is_no_packet_and_no_exception(data: bytes) -> None:
    reader = Reader()
    reader.feed(data)
    assert set(reader.acks) <= set(b"+-")


def test_a_wrong_checksum_asks_for_the_packet_again() -> None:
    reader = Reader()
    assert reader.feed(b"$g#00") == []
    assert reader.acks == b"-"


def test_a_packet_without_end_is_given_up() -> None:
    with pytest.raises(Broken):
        Reader().feed(b"$" + b"a" * (MAX_PACKET_BYTES + 1))


@pytest.mark.parametrize(("bits", "architecture", "first"), [(64, "i386:x86-64", "rax"), (32, "i386", "eax")])
def test_the_description_names_each_register_once_and_in_order(bits: int, architecture: str, first: str) -> None:
    layout = Layout(bits)
    root = ElementTree.fromstring(layout.xml().partition(b"<!DOCTYPE")[0] + layout.xml().partition(b'dtd">')[2])
    registers = root.findall(".//reg")
    assert [reg.get("name") for reg in registers] == [register.name for register in layout.registers]
    assert [int(reg.get("regnum") or -1) for reg in registers] == list(range(len(layout.registers)))
    assert (root.findtext("architecture"), registers[0].get("name")) == (architecture, first)


def test_a_32_bit_kernels_registers_are_its_own(target: Target) -> None:
    stub, regs = Stub(target, bits=32), target.vcpus[0].kvm.regs  # type: ignore[arg-type]
    assert stub.handle(b"P8=78563412") == "OK"
    assert regs.rip == 0x12345678
    everything = stub.handle(b"g")
    assert everything is not None
    assert len(everything) == sum(register.bits for register in Layout(32).registers) // 4
    assert everything.startswith((regs.rax & 0xFFFF_FFFF).to_bytes(4, "little").hex())


def test_registers_are_read_and_written(stub: Stub, target: Target) -> None:
    everything = stub.handle(b"g")
    assert everything is not None
    assert len(everything) == sum(register.bits for register in Layout(64).registers) // 4
    assert everything.startswith("2211000000000000")
    assert stub.handle(b"P0=8877665544332211") == "OK"
    assert target.vcpus[0].kvm.regs.rax == 0x1122334455667788
    assert stub.handle(b"p0") == "8877665544332211"
    assert stub.handle(b"G" + everything.encode()) == "OK"
    assert target.vcpus[0].kvm.regs.rax == 0x1122


def test_memory_is_read_and_written_where_there_is_some(stub: Stub, target: Target) -> None:
    assert stub.handle(b"M1000,3:010203") == "OK"
    assert stub.handle(b"m1000,4") == "01020300"
    assert stub.handle(b"X1003,2:\xff$") == "OK"
    assert target.memory[:5] == b"\1\2\3\xff$"
    assert stub.handle(b"m9000,4") == "E0e"
    assert stub.handle(b"M1fff,2:0102") == "E0e"


def test_vcont_runs_whom_it_names(stub: Stub, target: Target) -> None:
    assert stub.handle(b"vCont;s:2;c") is None
    assert stub.running
    assert target.ran == [({1}, {0})]
    assert stub.handle(b"g") is None  # all-stop: only an interrupt is due
    assert stub.handle(INTERRUPT) == "T02thread:1;"
    assert stub.handle(b"vCont;c:1") is None
    assert target.ran[-1] == (set(), {0})
    assert stub.stopped(Stop(1, "watch", 0x1000)) == "T05thread:2;watch:1000;"


def test_breakpoints_of_each_kind(stub: Stub, target: Target) -> None:
    assert stub.handle(b"Z0,1000,1") == "OK"
    assert stub.handle(b"Z1,1004,1") == "OK"
    assert stub.handle(b"Z2,1008,8") == "OK"
    assert stub.handle(b"Z4,1010,4") == "OK"
    assert stub.handle(b"Z1,1014,1") == "E1c"
    assert stub.handle(b"z0,1000,1") == stub.handle(b"z2,1008,8") == "OK"
    assert target.points == {Hardware(1, 0x1004, 1), Hardware(4, 0x1010, 4)}
    assert stub.handle(b"Z0,9000,1") == "E0e"
    assert stub.handle(b"Z2,1001,8") == "E16"
    assert stub.handle(b"Z9,1000,1") == ""


def test_detach_and_kill_are_said_to_the_server(stub: Stub) -> None:
    with pytest.raises(Detached):
        stub.handle(b"D")
    with pytest.raises(Killed):
        stub.handle(b"k")


@given(st.one_of(st.binary(max_size=60), st.text("gGpPmMHTZzqvcsX0123456789abcdef,;:=", max_size=30).map(str.encode)))
def test_any_packet_gets_an_answer_or_an_error(packet: bytes) -> None:
    stub = Stub(Target())  # type: ignore[arg-type]
    try:
        answer = stub.handle(packet)
    except (Detached, Killed):
        return
    assert answer is None or answer.isascii()
