"""What `ci/nested` makes of the machines that it runs."""

import sys

from scripts.benchmarks.monitors import ROOT

sys.path.append(str(ROOT / "ci"))

import in_bochs  # type: ignore[import-not-found]

ENTRY = bytes.fromhex("83a3dc910000fb c683b98e000001 f683d891000004")
EXIT = bytes.fromhex("8b83dc910000 89c2 83ca04 8993dc910000")


def test_bochs_takes_interrupts_for_a_guest_that_has_them_off_and_none_for_a_host_that_has() -> None:
    mended = in_bochs.mended(b"before" + ENTRY + b"between" + EXIT + b"after")
    assert mended == b"".join([
        b"before",
        bytes.fromhex("80a3dd910000f3"),  # andb $~0xc, event_mask + 1
        bytes.fromhex("c683b98e000001"),
        bytes.fromhex("f683d99100000c"),  # testb $0xc, pending_event + 1
        b"between",
        bytes.fromhex("8b83dc910000 89c2 80ce0c 8993dc910000"),  # or $0xc, %dh
        b"after",
    ])  # fmt: skip


def test_a_bochs_in_which_a_place_is_missing_or_there_twice_is_left_alone() -> None:
    assert in_bochs.mended(ENTRY) is None
    assert in_bochs.mended(EXIT) is None
    assert in_bochs.mended(ENTRY + EXIT + EXIT) is None
