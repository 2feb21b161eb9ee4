"""The control socket of a running guest."""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
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
        self.server = ControlServer(
            "mine", {"status": self._status, "shutdown": self._refuse, "sysrq": self.asked.append, "fault": self._fault},
            self.tee, self._type,
        )  # fmt: skip

    def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": "mine", "domid": 1, "memory_mib": 64, "vcpus": 1, "pid": os.getpid(), "seconds": 1.5, "image": "x",
        }  # fmt: skip

    def _refuse(self, request: dict[str, Any]) -> None:
        raise PyvmmError("the guest's kernel does not listen")

    def _fault(self, request: dict[str, Any]) -> None:
        raise ZeroDivisionError

    def _type(self, data: bytes) -> None:
        self.typed += data


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    for module in (places, server):
        monkeypatch.setattr(module, "folder", lambda: tmp_path / "run")
    made = Running()
    yield made
    made.server.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_request_is_carried_out_and_its_answer_told(running: Running) -> None:
    with Control("mine") as control:
        assert control.ask("status")["memory_mib"] == 64
        control.ask("sysrq", key="h")
        assert running.asked == [{"do": "sysrq", "key": "h"}]
        for what, reason in (("shutdown", "does not listen"), ("fly", "can be asked for"), ("fault", "internal fault")):
            with pytest.raises(PyvmmError, match=reason):
                control.ask(what)
        assert control.ask("status")["name"] == "mine"


def test_only_its_owner_may_reach_it(running: Running, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_guests_that_run_are_listed(running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = socket.socket(socket.AF_UNIX)  # by one that was killed
    left.bind(str(tmp_path / "run/dead.control"))
    left.close()
    assert [guest["name"] for guest in statuses()] == ["mine"]
    print_list(as_json=False)
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["mine", "1", "64", "1"]
    print_list(as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["pid"] == os.getpid()
    (tmp_path / "run/dead.control").unlink()
    with pytest.raises(PyvmmError, match="no guest called 'other' runs here; those that do: mine"):
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
