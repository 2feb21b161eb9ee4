"""Where console bytes go to and come from."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from vmm.errors import PyvmmError, UsageError
from vmm.host.chardev import Chardev, Output
from vmm.host.consoles import open_chardev
from vmm.host.eventloop import EventLoop


def nothing() -> None:
    pass


def written_in_background(chardev: Chardev, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=chardev.write, args=[data], daemon=True)
    thread.start()
    return thread


def read_all(fd: int, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes and (piece := os.read(fd, 65536)):
        data += piece
    return data


def test_file_takes_everything(tmp_path: Path) -> None:
    chardev = open_chardev(f"file:{tmp_path}/log")
    chardev.write(b"line\n" * 10000)
    chardev.close()
    assert (tmp_path / "log").read_bytes() == b"line\n" * 10000


def test_bad_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PyvmmError, match="No such file"):
        open_chardev(f"file:{tmp_path}/no/where")
    with pytest.raises(PyvmmError, match="cannot listen"):
        open_chardev(f"unix:{tmp_path}/no/where")
    for spec in ("tty", "file:", "unix:", "", "pty:"):
        with pytest.raises(UsageError, match="--console takes stdio, pty"):
            open_chardev(spec)


def test_a_reader_that_is_gone_does_not_stop_the_guest() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = Output(writer, owned=True)
    output.write(b"lost")
    output.write(b"lost too")
    output.close()


def test_a_slow_reader_loses_nothing() -> None:
    reader, writer = os.pipe()
    output, data = Output(writer, owned=True), os.urandom(1 << 20)
    thread = written_in_background(output, data)
    assert read_all(reader, len(data)) == data
    thread.join(5)
    output.close()
    os.close(reader)


def test_discard_lets_a_writer_go_whose_reader_does_not_read() -> None:
    reader, writer = os.pipe()
    output = Output(writer, owned=True)
    thread = written_in_background(output, bytes(1 << 20))
    time.sleep(0.05)
    assert thread.is_alive()
    output.discard()
    thread.join(5)
    assert not thread.is_alive()
    output.close()
    os.close(reader)


class Typed:
    """Whoever gets the input."""

    def __init__(self) -> None:
        self.data = b""
        self.seen = threading.Event()

    def offer(self, data: bytes) -> None:
        self.data += data
        self.seen.set()


def test_socket_shows_the_last_output_to_who_comes_late_and_takes_input(tmp_path: Path) -> None:
    path, typed = tmp_path / "console", Typed()
    chardev = open_chardev(f"unix:{path}")
    chardev.start(typed.offer, nothing)
    chardev.write(bytes(100_000) + b"before")
    for turn in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            if turn == 0:
                assert read_all(client.fileno(), 64 << 10).endswith(b"before")
            client.sendall(b"typed")
            assert typed.seen.wait(5)
            typed.seen.clear()
            written_in_background(chardev, bytes(300_000)).join(0)
            assert len(read_all(client.fileno(), 300_000)) == 300_000
        time.sleep(0.1)
    assert typed.data == b"typedtyped"
    chardev.close()
    assert not path.exists()


def test_socket_of_a_running_guest_is_not_taken_away(tmp_path: Path) -> None:
    first = open_chardev(f"unix:{tmp_path}/console")
    with pytest.raises(PyvmmError, match="in use"):
        open_chardev(f"unix:{tmp_path}/console")
    first.close()
    open_chardev(f"unix:{tmp_path}/console").close()


def test_pty_names_itself_and_carries_both_ways(capfd: pytest.CaptureFixture[str]) -> None:
    typed = Typed()
    chardev = open_chardev("pty")
    name = capfd.readouterr().err.split()[-1]
    chardev.start(typed.offer, nothing)
    chardev.write(b"kept")
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    assert read_all(slave, 4) == b"kept"
    os.write(slave, b"ls\n")
    assert typed.seen.wait(5)
    assert typed.data == b"ls\n"
    os.close(slave)
    chardev.close()


def test_chardevs_and_doorbells_that_are_closed_leave_no_descriptor(tmp_path: Path) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    loop = EventLoop("test")
    loop.start()
    before = held()
    for _ in range(20):
        for place in ("none", f"file:{tmp_path}/out", f"unix:{tmp_path}/socket", "pty"):
            chardev = open_chardev(place)
            chardev.start(lambda data: None, nothing)
            chardev.close()
            chardev.discard()  # later than that does no harm
        bell = loop.doorbell(nothing)
        closed = threading.Event()
        loop.post(lambda bell=bell, closed=closed: (bell.close(), closed.set()))
        assert closed.wait(5)
        bell.ring()
    assert held() == before
    loop.stop()
