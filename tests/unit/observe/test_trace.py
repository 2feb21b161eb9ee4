"""Records of what happens in a guest: decoded by name, filtered, written in each format, counted."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import PyvmmError, UsageError
from vmm.observe.trace.decode import fields_of
from vmm.observe.trace.filters import EVERYTHING, known_names, parse_filter
from vmm.observe.trace.records import Event, Exit, Hypercall, Record, StoreMessage, as_dict
from vmm.observe.trace.stats import Stats
from vmm.observe.trace.symbols import Symbols, load_symbols
from vmm.observe.trace.writers import WRITERS, Output, line
from vmm.xenabi.constants import Hypercall as Number
from vmm.xenabi.hypercalls.registry import TABLE, Entry, Suboperations, name_of
from vmm.xenabi.structs import EvtchnAllocUnbound, EvtchnBindVirq
from vmm.xenabi.values import Domid, Port, VcpuId
from vmm.xenstore.wire import Kind, Message


def hypercall(result: int | None = 0, *, name: str = "event_channel_op.alloc_unbound", vcpu: int = 0) -> Hypercall:
    operand = EvtchnAllocUnbound(dom=0x7FF0, remote_dom=0, port=7)
    args = (6, 0xFFFF_8000_0000_1000, 0, 0, 0, 0)
    number, rip = Number.event_channel_op, 0xFFFF_FFFF_8100_0003
    return Hypercall(1_500_000_000, Domid(1), VcpuId(vcpu), name, number, args, operand, result, 12_000, rip)


EVENT = Event(2_000, Domid(1), VcpuId(1), Port(4), "virq_timer", True)
EXIT = Exit(3_000, Domid(1), VcpuId(0), "IO", "out port 0xb004, 2 bytes", 900)
STORE = StoreMessage(4_000, Domid(1), Message(Kind.READ, 1, 0, b"device/vbd\0"), Message(Kind.ERROR, 1, 0, b"ENOENT\0"))
RECORDS: list[Record] = [hypercall(), hypercall(-errno.ENOSPC, vcpu=1), EVENT, EXIT, STORE]


def test_a_line_reads_like_strace() -> None:
    symbols = Symbols({"xen_hypercall": 0xFFFF_FFFF_8100_0000})
    call = "event_channel_op.alloc_unbound(dom=DOMID_SELF, remote_dom=0, port=7)"
    assert line(hypercall(), symbols) == f"   1.500000 d1v0  {call} = 0 <0.000012> [xen_hypercall+0x3]"
    assert " = -28 ENOSPC (No space left on device) <" in line(hypercall(-errno.ENOSPC))
    assert line(EVENT).endswith("d1v1  event port 4 (virq_timer): upcall")
    assert line(STORE).endswith('d1    xenstore.read("device/vbd") = "ENOENT"')
    assert "= ? (goes on)" in line(hypercall(None))


def test_every_registered_hypercall_has_all_its_arguments_named() -> None:
    for number, found in TABLE.items():
        entries = found.entries if isinstance(found, Suboperations) else {0: found}
        for sub, entry in entries.items():
            assert isinstance(entry, Entry)
            operand = entry.arg() if entry.arg is not None else None
            fields = fields_of(number, (sub, 1, 2, 3, 4, 5), operand)
            assert all(name for name, _ in fields), entry.name
            assert len(fields) >= (entry.arg is not None), entry.name


@given(st.integers(0, 60), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6).map(tuple))
def test_any_hypercall_of_a_hostile_guest_can_be_written(number: int, args: tuple[int, ...]) -> None:
    record = Hypercall(0, Domid(1), VcpuId(0), name_of(number, args), number, args, None, -errno.ENOSYS, 1, 2**64 - 1)
    assert "ENOSYS" in line(record)
    json.dumps(as_dict(record))


def test_virqs_spaces_and_parameters_have_their_names() -> None:
    fields = dict(fields_of(Number.event_channel_op, (1, 0, 0, 0, 0, 0), EvtchnBindVirq(virq=0, vcpu=1)))
    assert fields["virq"] == "TIMER"


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("hypercall", [0, 1]),
        ("event_channel_op", [0, 1]),
        ("alloc_unbound", [0, 1]),
        ("event_channel_op.*", [0, 1]),
        ("failed", [1, 4]),
        ("vcpu=1", [1, 2]),
        ("dom=2", []),
        ("!event,!exit", [0, 1, 4]),
        ("xenstore,exit.io", [3, 4]),
        ("event.virq_timer", [2]),
    ],
)
def test_filters_take_what_they_name(text: str, taken: list[int]) -> None:
    wanted = parse_filter(text)
    assert [index for index, record in enumerate(RECORDS) if wanted.matches(record)] == taken


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"nothing that is called 'grant_table_opp'; did you mean 'grant_table_op'\?"):
        parse_filter("grant_table_opp")
    with pytest.raises(UsageError, match="there are hypercall, event, xenstore, exit"):
        parse_filter("zzzzqqqq")


def test_all_known_names_are_understood() -> None:
    for name in known_names():
        assert parse_filter(name).names == (name,)


@pytest.mark.parametrize("form", ["text", "jsonl", "perfetto"])
def test_each_format_holds_each_record_once(form: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    writer = WRITERS[form](Output(file), EVERYTHING, Symbols({"here": 0xFFFF_FFFF_8100_0000}))
    for record in RECORDS:
        writer.take(record)
    writer.close()
    text = file.read_text()
    if form == "perfetto":
        events = json.loads(text)
        assert [event["name"] for event in events if event["ph"] != "M"] == [record.name for record in RECORDS]
        tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
        assert tracks == {"vCPU 0", "vCPU 1", "xenstore"}
        assert all(event["dur"] == 12.0 for event in events if event.get("cat") == "hypercall")
    else:
        assert len(text.splitlines()) == len(RECORDS)
    if form == "jsonl":
        first = json.loads(text.splitlines()[0])
        assert first["arguments"] == {"dom": "DOMID_SELF", "remote_dom": "0", "port": "7"}
        assert first["symbol"] == "here+0x3"


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = WRITERS["text"](Output(Path("/dev/full")), EVERYTHING, None)
    for _ in range(5000):
        writer.take(hypercall())
    writer.close()
    with pytest.raises(PyvmmError, match=r"--trace-file .*: No such file or directory"):
        Output(tmp_path / "absent" / "trace")


def test_statistics_count_calls_errors_and_time() -> None:
    stats = Stats()
    for record in RECORDS:
        stats.take(record)
    lines = stats.table(2.0, [("vbd/51712", {"requests": 10, "bytes": 40960})])
    assert lines[1].split() == ["100.00", "0.000024", "12.0", "2", "1", "event_channel_op.alloc_unbound"]
    assert [row.split() for row in lines if "virq_timer" in row] == [["1", "0.5", "port", "4", "(virq_timer)"]]
    assert [row.split() for row in lines if "bytes" in row] == [["40960", "20480.0", "bytes"]]


def test_symbols_come_from_a_system_map(tmp_path: Path) -> None:
    file = tmp_path / "System.map"
    file.write_text("ffffffff81000000 T startup_64\nffffffff81000100 t other\t[module]\n0000000000000000 A absolute\n")
    symbols = load_symbols(file)
    assert symbols.addresses == {"startup_64": 0xFFFF_FFFF_8100_0000, "other": 0xFFFF_FFFF_8100_0100}
    assert symbols.name(0xFFFF_FFFF_8100_0010) == "startup_64+0x10"
    assert symbols.name(0x1000) is None
    assert symbols.name(0xFFFF_FFFF_9100_0000) is None


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + bytes(60), b"nothing here\n"])
def test_a_file_without_symbols_is_refused_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(PyvmmError, match="symbols"):
        load_symbols(file)
    with pytest.raises(PyvmmError, match=r"cannot read symbols from .*absent"):
        load_symbols(tmp_path / "absent")
