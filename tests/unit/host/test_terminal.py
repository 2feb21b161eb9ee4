"""Typed input on its way to a guest."""

import os
import pty
import termios
import threading

import pytest

from tests.unit.devices.test_console import Collected, Frontend
from tests.unit.fakes import Bytes
from vmm.devices.console.pv import Console
from vmm.host.terminal import Terminal


class Reader:
    """Whoever gets the input."""

    def __init__(self) -> None:
        self.data = b""
        self.left = threading.Event()
        self.ended = threading.Event()

    def offer(self, data: bytes) -> None:
        self.data += data
        if not data:
            self.ended.set()


def test_terminal_is_raw_while_reading_and_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    reader = Reader()
    terminal = Terminal(slave, reader.left.set)
    terminal.start(reader.offer)
    assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    os.write(master, b"\x03ls\r\x1dnever seen")
    assert reader.left.wait(5)
    terminal.restore()
    assert termios.tcgetattr(slave) == before
    assert reader.data == b"\x03ls\r"
    os.close(master)
    os.close(slave)


def test_a_pipe_is_passed_on_whole_escape_character_included() -> None:
    source, target = os.pipe()
    reader = Reader()
    Terminal(source, reader.left.set).start(reader.offer)
    os.write(target, b"echo \x1d\n")
    os.close(target)
    assert reader.ended.wait(5)
    assert reader.data == b"echo \x1d\n"
    assert not reader.left.is_set()


def test_input_waits_until_the_guest_has_room() -> None:
    front, rings, taken = Frontend(), [], []
    console = Console(front.page, Collected(), lambda: rings.append(1))
    console.take_input(b"a" * 1500, lambda: taken.append(1))
    assert front.indexes()[1] == 1024
    assert not taken
    in_cons, in_prod, out_cons, out_prod = front.indexes()
    front.set_indexes(in_cons + 1024, in_prod, out_cons, out_prod)
    console.on_event()
    assert front.indexes()[1] == 1500
    assert taken == [1]
    assert len(rings) == 2


def test_a_broken_ring_takes_no_input_and_does_no_harm() -> None:
    page = Bytes()
    page.write(3072, b"\xff" * 16)
    page.write(3072, b"\0\0\0\0")
    console = Console(page, Collected(), lambda: None)
    console.take_input(b"lost", lambda: None)
    console.on_event()
