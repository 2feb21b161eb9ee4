"""The control socket of a running guest."""

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm.control import client, places, server
from vmm.control.client import Control, print_list, statuses
from vmm.control.server import ControlServer
from vmm.errors import PyvmmError
from vmm.host.chardev import Tee


class Screen:
    """A console's sink."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class Running:
    """A control server without a guest."""

    def __init__(self) -> None:
        self.screen = Screen()
        self.tee = Tee(self.screen)
        self.typed = b""
        self.asked: list[dict[str, Any]] = []
        self.left = False
        self.server = ControlServer("mine", lambda: self)

    def answer(self, request: dict[str, Any]) -> Any:
        what = request.get("do")
        if what == "status":
            return [
                {
                    "name": name, "domid": domid, "memory_mib": 64, "vcpus": 1, "pid": os.getpid(), "seconds": 1.5,
                    "image": "x", "state": "running",
                }
                for name, domid in (("mine", 1), ("beside", 2))
            ]  # fmt: skip
        if what == "sysrq":
            self.asked.append(request)
            return None
        if what == "fault":
            raise ZeroDivisionError
        raise PyvmmError(f"the guest's kernel does not listen for {what}")

    def console(self, request: dict[str, Any]) -> tuple[Tee, Callable[[bytes], None]]:
        return self.tee, self._type

    def stream(self, request: dict[str, Any], left: Callable[[], bool]) -> Iterator[str]:
        if request.get("filter") == "nonsense":
            raise PyvmmError("no such thing")

        def lines() -> Iterator[str]:
            yield "first\n"
            while not left():
                time.sleep(0.001)
            self.left = True

        return lines()

    def _type(self, data: bytes) -> None:
        self.typed += data


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(places, "folder", lambda: tmp_path / "run")
    made = Running()
    yield made
    made.server.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_request_is_carried_out_and_its_answer_told(running: Running) -> None:
    with Control("mine") as control:
        assert control.ask("status")[0]["memory_mib"] == 64
        control.ask("sysrq", key="h")
        assert running.asked == [{"do": "sysrq", "guest": "mine", "key": "h"}]
        for what, reason in (("shutdown", "does not listen"), ("fault", "internal fault")):
            with pytest.raises(PyvmmError, match=reason):
                control.ask(what)
        assert control.ask("status")[0]["name"] == "mine"


@pytest.mark.parametrize("guest", ["beside", "2"])
def test_a_guest_beside_the_first_is_found_by_name_and_by_domid(running: Running, guest: str) -> None:
    with Control(guest) as control:
        control.ask("sysrq", key="t")
    assert running.asked == [{"do": "sysrq", "guest": guest, "key": "t"}]


def test_what_a_guest_does_is_followed_until_the_reader_goes(running: Running) -> None:
    with pytest.raises(PyvmmError, match="no such thing"), Control("mine") as control:
        control.ask("trace", filter="nonsense")
    with Control("mine") as control:
        control.ask("trace", filter="")
        assert control._lines.readline() == b"first\n"
    deadline = time.monotonic() + 10
    while not running.left:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_ten_megabytes_in_one_line_get_one_answer(running: Running) -> None:
    with Control("mine") as control:
        with suppress(OSError):  # it does not read all of it
            control._socket.sendall(b"x" * (10 << 20))
        with suppress(OSError):
            assert json.loads(control._lines.readline())["error"].startswith("a request is a line of JSON")
    with Control("mine") as control:
        assert control.ask("status")


def test_a_client_that_stalls_is_let_go(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_WAIT_S", 0.05)
    with Control("mine") as control:
        control._socket.sendall(b'{"do": ')
        assert control._lines.read() == b""


def test_others_may_not_have_made_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run"
    monkeypatch.setattr(places, "folder", lambda: place)
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(PyvmmError, match="is not a folder that only this user may write to"):
        places.make_folder()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(PyvmmError, match="is not a folder that only this user may write to"):
        places.make_folder()


def test_only_its_owner_may_reach_it(running: Running, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_guests_that_run_are_listed(running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = socket.socket(socket.AF_UNIX)  # by one that was killed
    left.bind(str(tmp_path / "run/dead.control"))
    left.close()
    assert [guest["name"] for guest in statuses()] == ["mine", "beside"]
    print_list(as_json=False)
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["mine", "1", "64", "1"]
    print_list(as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["pid"] == os.getpid()
    (tmp_path / "run/dead.control").unlink()
    with pytest.raises(PyvmmError, match="no guest called 'other' runs here; those that do: mine, beside"):
        Control("other")


def test_a_name_is_one_guests(running: Running) -> None:
    with pytest.raises(PyvmmError, match="a guest called 'mine' runs already"):
        Running()


def test_the_console_goes_both_ways(running: Running) -> None:
    with Control("mine") as control:
        control.ask("console")
        connection = control._socket
        deadline = time.monotonic() + 10
        seen = b""
        connection.settimeout(0.01)
        while b"prompt" not in seen and time.monotonic() < deadline:
            running.tee.write(b"prompt")
            with suppress(TimeoutError):
                seen += connection.recv(100)
        connection.sendall(b"typed\n")
        while not running.typed and time.monotonic() < deadline:
            time.sleep(0.001)
    assert running.typed == b"typed\n"
    assert running.screen.data.startswith(b"prompt")
    while running.tee._onlookers and time.monotonic() < deadline:
        time.sleep(0.001)
    running.tee.write(b"nobody looks")
    assert running.screen.data.endswith(b"nobody looks")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.binary(max_size=200))
def test_any_line_is_answered(running: Running, line: bytes) -> None:
    with Control("mine") as control:
        control._socket.sendall(line.replace(b"\n", b"") + b"\n")
        assert set(json.loads(control._lines.readline())) <= {"ok", "error"}


def test_a_guest_that_ends_before_its_answer_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "socket_of", lambda name: tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        with Control("gone") as control:
            listener.accept()[0].close()
            with pytest.raises(PyvmmError, match="ended before it answered"):
                control.ask("status")
