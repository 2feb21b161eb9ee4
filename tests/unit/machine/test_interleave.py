"""Two sources in one sink."""

from hypothesis import given
from hypothesis import strategies as st

from vmm.machine.interleave import HELD_BYTES, HELD_NS, Interleaved


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def made() -> tuple[Sink, Interleaved, list[int]]:
    sink, armed = Sink(), list[int]()
    return sink, Interleaved(sink, armed.append), armed


def test_a_line_that_one_has_begun_is_ended_before_the_others_is_shown() -> None:
    sink, lines, armed = made()
    one, other = lines.of("one"), lines.of("other")
    one.write(b"half ")
    other.write(b"whole\n")
    assert (sink.data, armed) == (b"half ", [HELD_NS])
    one.write(b"done\n")
    assert sink.data == b"half done\nwhole\n"


def test_what_waits_too_long_or_is_too_much_comes_on_a_line_of_its_own() -> None:
    sink, lines, _ = made()
    lines.of("one").write(b"# ")
    lines.of("other").write(b"oops\n")
    lines.flush()
    assert sink.data == b"# \noops\n"
    lines.of("one").write(b"# ")
    lines.of("other").write(b"x" * HELD_BYTES)
    assert sink.data.endswith(b"\nx" + b"x" * (HELD_BYTES - 1))


@given(st.lists(st.tuples(st.sampled_from(["one", "other"]), st.sampled_from([b"a", b"b\n", b"", b"c\nd"])), max_size=30))
def test_nothing_is_lost_and_each_source_keeps_its_order(writes: list[tuple[str, bytes]]) -> None:
    sink, lines, _ = made()
    for source, data in writes:
        lines.of(source).write(data.upper() if source == "one" else data)
    lines.flush()
    for source, keep in (("one", bytes.isupper), ("other", bytes.islower)):
        wanted = b"".join(data.upper() if name == "one" else data for name, data in writes if name == source)
        found = b"".join(bytes([byte]) for byte in sink.data if keep(bytes([byte])))
        assert found == wanted.replace(b"\n", b"")
