"""Debian's GDB on a micro-guest, and a debugger that misbehaves."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import one_sentence, pyvmm, started
from tests.micro.test_micro import Build
from vmm.observe.gdb.packets import frame

TIMEOUT_S = 60


def listening(place: Path) -> bool:
    """Whether somebody listens there; without a connection, which would be a debugger's."""
    flags = [line.split()[3] for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(str(place))]
    return flags == ["00010000"]


@contextmanager
def debugged(image: Path, place: Path, *, wait: bool = False) -> "Iterator[subprocess.Popen[str]]":
    """A guest that listens for GDB at a Unix socket."""
    command = ("run", image, "--transport", "page", "--gdb", f"unix:{place}{',wait' * wait}", "--timeout", TIMEOUT_S)
    with started(*command) as process:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not listening(place) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert listening(place)
            yield process
        finally:
            process.kill()


def gdb(image: Path, place: Path, *commands: str) -> str:
    """What GDB says to some commands."""
    words = ["gdb", "-nx", "-batch", "-ex", "set confirm off", "-ex", f"target remote {place}"]
    for command in commands:
        words += ["-ex", command]
    done = subprocess.run([*words, str(image)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.stdout + done.stderr


def test_gdb_breaks_steps_looks_and_lets_go(build: Build, tmp_path: Path) -> None:
    image, place = build("sleeper"), tmp_path / "gdb"
    with debugged(image, place) as process:
        said = gdb(
            image, place, "info threads", "break now", "continue", "stepi", "x/i $rip", "set $r10 = 0x1234", "p/x $r10",
            "set var *(long*)&singleshot = 5", "p *(long*)&singleshot", "delete", "hbreak handler", "continue", "bt 1",
            "p/x $cr3", "p/x $efer", "detach",
        )  # fmt: skip
        assert "vCPU 0, online" in said, said
        assert "Breakpoint 1, 0x" in said and "in now ()" in said
        assert "$1 = 0x1234" in said
        assert "$2 = 5" in said
        assert "Breakpoint 2, 0x" in said and "#0  0x" in said
        assert "$4 = 0x500" in said  # long mode, active
        again = gdb(image, place, "p/x $rip", "kill")
        assert "$1 = 0x10" in again, again
        assert process.wait(TIMEOUT_S) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_breakpoints_beyond_the_debug_registers_are_int3(build: Build, tmp_path: Path) -> None:
    image, place = build("sleeper"), tmp_path / "gdb"
    if "QEMU TCG" in Path("/proc/cpuinfo").read_text():
        pytest.skip("the CPU that QEMU's TCG emulates does not tell of int3 in a nested guest")
    with debugged(image, place) as process:
        unused = [f"break *({address:#x})" for address in range(0x400000, 0x400004)]
        said = gdb(image, place, *unused, "break now", "continue", "x/1xb $rip", "delete", "stepi", "x/i $rip", "kill")
        assert "Breakpoint 5, 0x" in said, said
        assert "<now>:\t0x0f" in said  # GDB shows what was there
        assert process.wait(TIMEOUT_S) == 130


def test_a_guest_that_waits_does_nothing_until_gdb_says_so(build: Build, tmp_path: Path) -> None:
    image, place = build("hello"), tmp_path / "gdb"
    with debugged(image, place, wait=True) as process:
        said = gdb(image, place, "p/x $rip", "hbreak main", "continue", "delete", "continue")
        assert "in start32 ()" in said, said
        assert "Breakpoint 1, 0x" in said
        assert "exited normally" in said
        out, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
        assert "PASS" in out
        assert errors == f"pyvmm: the guest waits for GDB at unix:{place}\n"


@pytest.mark.parametrize(
    "leaves", [b"", frame(b"vCont;s:1") * 2, b"$" + b"x" * 40000, b"\x03\x03$nonsense#zz", frame(b"c")]
)
def test_a_debugger_that_leaves_or_sends_garbage_harms_nothing(build: Build, tmp_path: Path, leaves: bytes) -> None:
    image, place = build("sleeper"), tmp_path / "gdb"
    with debugged(image, place) as process:
        with socket.socket(socket.AF_UNIX) as debugger:
            debugger.connect(str(place))
            debugger.sendall(frame(b"?"))
            said = b""
            while b"T05" not in said and (part := debugger.recv(100)):
                said += part
            assert said.startswith(b"+$T05")
            debugger.sendall(leaves)
        answer = gdb(image, place, "break now", "continue", "delete", "kill")  # it runs, and another debugger is welcome
        assert "Breakpoint 1, 0x" in answer, answer
        assert process.wait(TIMEOUT_S) == 130


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nonsense", "--gdb takes PORT, ADDRESS:PORT or unix:PATH, not 'nonsense'"),
        ("99999", "--gdb takes PORT"),
        ("unix:/absent/gdb", "cannot listen on /absent/gdb: No such file or directory"),
    ],
)
def test_a_place_where_nobody_can_listen_gets_one_sentence(build: Build, place: str, reason: str) -> None:
    done = pyvmm("run", build("hello"), "--gdb", f"{place},wait", "--timeout", 20)
    one_sentence(done, done.returncode, reason)
    assert done.returncode in (1, 2)
