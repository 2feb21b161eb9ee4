"""Xenstore's socket, with Xen's own tools and with `pyvmm xenstore` as clients."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fakes import Bytes
from tests.unit.xenstore.test_server import FACTS
from vmm.cli.main import main
from vmm.cli.xenstore import shown
from vmm.errors import PyvmmError
from vmm.xenabi.values import Domid
from vmm.xenstore.client import Client
from vmm.xenstore.layout import describe_domain
from vmm.xenstore.service import Xenstore
from vmm.xenstore.wire import HEADER, Kind, Message


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "socket"
    monkeypatch.setenv("XENSTORED_PATH", str(place))
    return place


@pytest.fixture
def service(path: Path) -> Iterator[Xenstore]:
    assert shutil.which("xenstore-ls"), "install xenstore-utils: Xen's own tools are the clients here"
    made = Xenstore()
    made.listen(path)
    made.run(lambda store: describe_domain(store, FACTS))
    yield made
    made.close()


def tool(name: str, *arguments: str) -> str:
    done = subprocess.run([f"xenstore-{name}", *arguments], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_xens_tools_read_and_write(service: Xenstore) -> None:
    assert tool("read", "/local/domain/1/name") == "g\n"
    tool("write", "/a/b", "1", "/a/c", "two words")
    assert tool("list", "/a") == "b\nc\n"
    assert tool("ls", "/a") == 'b = "1"\nc = "two words"\n'
    tool("chmod", "/a/b", "n0", "r1")
    assert '/a/b = "1"   (n0,r1)' in tool("ls", "-f", "-p", "/a")
    tool("rm", "/a")
    assert subprocess.run(["xenstore-exists", "/a"], check=False).returncode == 1


def test_xens_watch_hears_what_another_client_does(service: Xenstore) -> None:
    with subprocess.Popen(["xenstore-watch", "-n", "3", "/a"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "/a\n"
        tool("write", "/a/b", "1")
        assert watching.stdout.readline() == "/a/b\n"
        tool("rm", "/a")
        assert watching.stdout.readline() == "/a\n"


def test_own_command_lists_what_xens_does(service: Xenstore, capsys: pytest.CaptureFixture[str]) -> None:
    tool("write", "/odd", "tab\tnewline\nbackslash\\")
    for options in ([], ["-f"], ["-f", "-p"]):
        assert main(["xenstore", "ls", *options]) == 0
        assert capsys.readouterr().out == tool("ls", *options)


def test_own_command_reads_writes_and_removes(service: Xenstore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xenstore", "write", "/a", "1", "/b", "2"]) == 0
    assert main(["xenstore", "read", "/a", "/b"]) == 0
    assert capsys.readouterr().out == "1\n2\n"
    assert main(["xenstore", "rm", "/a"]) == 0
    assert main(["xenstore", "read", "/a"]) == 1
    assert capsys.readouterr().err == "pyvmm: cannot read /a: No such file or directory (ENOENT)\n"
    assert main(["xenstore", "write", "/a"]) == 2


def test_long_listing_arrives_whole(service: Xenstore, path: Path) -> None:
    names = [f"a-rather-long-name-{number:04}" for number in range(500)]
    with Client(path) as client:
        for name in names:
            client.write(f"/many/{name}", b"")
        assert client.children("/many") == names


def test_command_without_a_xenstore_says_so(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xenstore", "ls"]) == 1
    assert f"no xenstore answers at {path}" in capsys.readouterr().err
    os.environ.pop("XENSTORED_PATH")
    assert main(["xenstore", "ls"]) == 2


def test_client_that_breaks_the_protocol_is_let_go_alone(service: Xenstore, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bad, Client(path) as good:
        bad.connect(str(path))
        bad.sendall(HEADER.pack(Kind.READ, 0, 0, 1 << 30))
        assert bad.recv(1) == b""
        assert good.read("/local/domain/1/name") == b"g"


def test_client_that_does_not_read_holds_nobody_up(service: Xenstore, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent, Client(path) as good:
        silent.connect(str(path))
        silent.sendall(Message(Kind.WATCH, 0, 0, b"/\0t\0").pack())
        request = Message(Kind.READ, 0, 0, b"/local/domain/1/name\0").pack()
        feeding = threading.Thread(target=lambda: _feed(silent, request * 1000), daemon=True)
        feeding.start()
        for number in range(500):
            good.write(f"/noise/{number}", b"x" * 1000)
        assert good.read("/noise/499") == b"x" * 1000
        silent.shutdown(socket.SHUT_RDWR)
        feeding.join(5)


def _feed(peer: socket.socket, data: bytes) -> None:
    try:
        while True:
            peer.sendall(data)
    except OSError:
        pass


def test_socket_in_use_is_refused_and_a_dead_one_replaced(service: Xenstore, path: Path) -> None:
    other = Xenstore()
    with pytest.raises(PyvmmError, match="in use by another process"):
        other.listen(path)
    service.close()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    other.listen(path)
    other.close()


def test_values_are_shown_with_escapes() -> None:
    assert shown(b"a\0\x7f\xff\n") == "a\\000\\177\\377\\n"


def test_a_domain_that_is_released_leaves_no_descriptor() -> None:
    service = Xenstore()
    before = len(os.listdir("/proc/self/fd"))
    for domid in range(1, 21):
        service.introduce(FACTS._replace(domid=Domid(domid)), Bytes(), lambda: None)
        service.release(Domid(domid))
    assert len(os.listdir("/proc/self/fd")) == before
    service.close()
