"""The log: what is said where, and that nobody is stopped by it."""

import os
import subprocess
import sys

import pytest

SAY = (
    "from vmm.host import log; log.configure('warning', json=True); log.get('x').warning('heard', port=5); print('went on')"
)


def run(stderr: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", SAY], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)


def test_a_record_is_one_line_with_its_fields() -> None:
    done = run(subprocess.PIPE)
    assert done.stderr.count("\n") == 1
    assert '"event": "heard"' in done.stderr
    assert '"port": 5' in done.stderr


def test_a_log_that_nobody_reads_any_more_stops_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(writing).stdout == "went on\n"
    os.close(writing)


@pytest.mark.parametrize("close", ["os.close(2)", "sys.stderr.close()", "setattr(sys, 'stderr', None)"])
def test_nor_does_one_that_is_closed(close: str) -> None:
    words = [sys.executable, "-c", f"import os, sys; {close}; {SAY}"]
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout == "went on\n"
