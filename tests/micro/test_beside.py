"""Guests beside a dom0, from their files: what they may have works, over dom0's restarts, too."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import pytest

from tests.commands import one_sentence, pyvmm, started

Build = Callable[[str], Path]
DEADLINE_S = 60
NO_CONSOLE = "--console", "none"


@contextmanager
def ended(process: "subprocess.Popen[str]") -> "Iterator[subprocess.Popen[str]]":
    """A command that is over at the end of the test."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def listed() -> str:
    return pyvmm("list").stdout


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(
    os.cpu_count() == 1, reason="needs two CPUs: on one, dom0 has rebooted each time before the guest beside it could run"
)
def test_its_console_is_a_socket_that_outlives_dom0s_restarts(build: Build, system: object, tmp_path: Path) -> None:
    place, file = tmp_path / "console", tmp_path / "domu"
    file.write_text(f"{build('sleeper')} --console unix:{place} --serial file:{tmp_path}/serial --name other")
    # dom0 reboots at once, again and again: each time the guest beside it starts anew, on the same console.
    with (
        ended(
            started("run", build("shutdown"), "--dom0", "--append", 1, "--with-domu", file, "--console", "none")
        ) as process,
        socket.socket(socket.AF_UNIX) as reader,
    ):
        until(lambda: reader.connect_ex(str(place)) == 0, process)
        reader.settimeout(DEADLINE_S)
        seen = b""
        while seen.count(b"asleep") < 3:
            data = reader.recv(4096)
            assert data, process.communicate()
            seen += data
        assert (tmp_path / "serial").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 130
    assert not place.exists()


def test_it_is_reached_by_name_and_domid_and_goes_alone(build: Build, system: object, tmp_path: Path) -> None:
    file, name = tmp_path / "domu", f"host{os.getpid()}"
    file.write_text(f"{build('sleeper')} --name beside{os.getpid()}")
    with ended(
        started("run", build("loop"), "--dom0", "--name", name, "--console", "none", "--with-domu", file)
    ) as process:
        until(lambda: name in listed(), process)
        assert re.search(rf"^beside{os.getpid()} +1 +512 +1  running", listed(), re.MULTILINE)
        trace = started("trace", f"beside{os.getpid()}", "vcpu_op")
        assert trace.stdout is not None
        assert select([trace.stdout], [], [], DEADLINE_S)[0], "nothing of it is seen"
        assert "vcpu_op.set_singleshot_timer" in trace.stdout.readline()
        assert pyvmm("destroy", f"beside{os.getpid()}").returncode == 0
        assert trace.wait(DEADLINE_S) == 0, "its end is the trace's"
        assert process.poll() is None, "dom0 goes on"
        stats = pyvmm("stats", name, "0.2")
        assert "hypercall" in stats.stdout
        assert pyvmm("destroy", name).returncode == 0
        assert process.wait(DEADLINE_S) == 130


def test_two_guests_of_one_name_are_refused(build: Build, system: object, tmp_path: Path) -> None:
    (tmp_path / "domu").write_text(f"{build('sleeper')} --name same")
    done = pyvmm("run", build("loop"), "--dom0", "--name", "same", "--with-domu", tmp_path / "domu")
    one_sentence(done, 2, "two guests are both called 'same'; give one of them another --name")


def test_a_hangup_leaves_no_socket_behind(build: Build, system: object) -> None:
    name = f"hung{os.getpid()}"
    with ended(started("run", build("loop"), "--name", name, "--console", "none")) as process:
        until(lambda: name in listed(), process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(DEADLINE_S) == 130
    from vmm.control.places import socket_of

    assert not socket_of(name).exists()


def test_a_guest_that_says_that_it_crashed_shows_its_registers(build: Build, system: object) -> None:
    done = pyvmm("run", build("shutdown"), "--append", 3)
    assert done.returncode == 3
    assert "the guest crashed: the guest's own kernel says that it crashed" in done.stderr
    assert re.search(r"^  rip=[0-9a-f]{16} ", done.stderr, re.MULTILINE)


def test_gdb_is_let_in_once(build: Build, system: object, tmp_path: Path) -> None:
    name = f"gdb{os.getpid()}"
    with ended(started("run", build("loop"), "--name", name, "--console", "none")) as process:
        until(lambda: name in listed(), process)
        place = tmp_path / "gdb"
        assert pyvmm("gdb", name, f"unix:{place}").returncode == 0
        again = pyvmm("gdb", name, "1234")
        assert (again.returncode, "already" in again.stderr) == (1, True)
        with socket.socket(socket.AF_UNIX) as debugger:
            debugger.settimeout(DEADLINE_S)
            debugger.connect(str(place))
            debugger.sendall(b"$?#3f")
            answer = b""
            while b"$T" not in answer:
                answer += debugger.recv(4096)
        assert pyvmm("destroy", name).returncode == 0
        assert process.wait(DEADLINE_S) == 130
    assert not place.exists()
