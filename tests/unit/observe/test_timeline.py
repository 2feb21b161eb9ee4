"""The timeline: phases in order, gaps by length, a page that any guest's output leaves whole."""

from html.parser import HTMLParser
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vmm.observe.trace.page import page
from vmm.observe.trace.records import KINDS, Exit
from vmm.observe.trace.timeline import BINS, Timeline
from vmm.xenabi.values import Domid, VcpuId

RECORD = Exit(0, Domid(1), VcpuId(0), "IO", "", 1)


class Checker(HTMLParser):
    """Counts what is open."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def boot() -> Timeline:
    timeline = Timeline()
    timeline.mark("making the domain and loading the image")
    timeline.take(RECORD)
    timeline.sendall(b"first li")
    timeline.sendall(b"ne\r\nRun /init as init process\nlast\n")
    timeline.close()
    return timeline


def test_phases_follow_each_other_from_exec_to_the_end() -> None:
    timeline = boot()
    phases = timeline.phases()
    assert [phase.name for phase in phases] == [
        "Python and its imports",
        "making the domain and loading the image",
        "guest's first instructions",
        "guest, before its first line",
        "kernel, to /init",
        "guest's user space",
    ]
    assert phases[0].start_s == 0
    assert all(before.end_s == after.start_s for before, after in pairwise(phases))
    assert phases[-1].end_s == timeline.seconds > 0


def test_records_fall_into_bins_and_lines_are_whole() -> None:
    timeline = boot()
    assert sum(timeline.counts("exit")) == 1
    assert all(len(timeline.counts(kind)) == BINS for kind in KINDS)
    assert [line.text for line in timeline.lines] == ["first line", "Run /init as init process", "last"]


def test_gaps_come_longest_first_with_the_lines_around_them() -> None:
    gaps = boot().gaps()
    assert [gap.seconds for gap in gaps] == sorted((gap.seconds for gap in gaps), reverse=True)
    assert {(gap.before, gap.after) for gap in gaps} == {
        ("first line", "Run /init as init process"),
        ("Run /init as init process", "last"),
    }


@given(st.lists(st.one_of(st.binary(max_size=80), st.just(b"<script>alert(1)</script>\n")), max_size=8))
def test_the_page_is_whole_whatever_the_guest_prints(output: list[bytes]) -> None:
    timeline = Timeline()
    for data in output:
        timeline.sendall(data)
        timeline.take(RECORD)
    timeline.close()
    checker = Checker()
    checker.feed(page("a <title>", timeline))
    assert checker.open == []
    assert checker.scripts == 0
