"""Guests in scripts: commands, files, console, xenstore, memory, registers, traces, faults; and the pytest plugin."""

import errno
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmm
from tests.commands import pyvmm
from vmm.errors import GuestError
from vmm.observe.faults import Fail
from vmm.testing.guest import Guest
from vmm.xenabi.constants import ShutdownReason

TIMEOUT_S = 240


@pytest.fixture(scope="module")
def alive(kernel: Callable[[str], Path]) -> Iterator[Guest]:
    """One guest with two vCPUs for all that does not end it."""
    with vmm.Guest(kernel("6.1"), vcpus=2, memory="256M", append="quiet", timeout=TIMEOUT_S) as made:
        yield made


def test_a_command_says_what_it_printed_and_how_it_ended(alive: Guest) -> None:
    result = alive.run("cat /sys/hypervisor/type; echo oops >&2; exit 7")
    assert (result.stdout, result.stderr, result.status) == ("xen\n", "oops\n", 7)
    assert alive.run("nproc").stdout == "2\n"
    with pytest.raises(GuestError, match="'false' failed in the guest with status 1"):
        alive.run("false", check=True)


def test_files_go_in_and_come_out_whole(alive: Guest, tmp_path: Path) -> None:
    data = bytes(range(256)) * 64
    alive.push(data, "/root/file with spaces", mode=0o755)
    assert alive.run("test -x '/root/file with spaces' && wc -c <'/root/file with spaces'").stdout.strip() == str(len(data))
    assert alive.pull("/root/file with spaces", tmp_path / "back") == data
    assert (tmp_path / "back").read_bytes() == data
    alive.push(b"", "/root/empty")
    assert alive.pull("/root/empty") == b""
    with pytest.raises(GuestError, match="could not read /root/absent"):
        alive.pull("/root/absent")


def test_the_console_is_typed_on_and_read(alive: Guest) -> None:
    alive.console.send("echo $((6 * 7))-answer\n")
    assert alive.console.expect(r"(\d+)-answer\r\n", TIMEOUT_S)[1] == "42"
    with pytest.raises(GuestError, match="without 'never shown' on the console"):
        alive.console.expect("never shown", 0.5)


def test_hypercalls_are_recorded_live_and_all_of_them_decoded(alive: Guest) -> None:
    before = len(alive.hypercalls)
    alive.run("sleep 0.3")
    assert len(alive.hypercalls) > before
    undecoded = {repr(call) for call in alive.hypercalls if not call.decoded}
    assert not undecoded
    (shared_info,) = [call for call in alive.hypercalls if ("space", "shared_info") in call.fields]
    assert shared_info.name == "memory_op.add_to_physmap"
    assert alive.hypercalls.filter("event_channel_op.send")
    assert {record.kind for record in alive.records.snapshot()} == {"hypercall", "event", "xenstore", "exit"}


def test_xenstore_is_read_written_and_watched(alive: Guest) -> None:
    assert alive.xenstore.read("name") == "guest"
    assert "console" in alive.xenstore.ls("device")
    alive.xenstore.wait_for("device/console/1/state", "4", TIMEOUT_S)
    with alive.xenstore.watch("data") as watch:
        assert watch.event(5) is not None
        alive.xenstore.write("data/note", "hello")
        assert watch.event(5) == alive.xenstore.path("data/note")
        assert watch.event(0.2) is None
    assert alive.xenstore.read("absent") is None


def test_memory_is_reached_by_address_and_by_symbol(alive: Guest, tmp_path: Path) -> None:
    lines = alive.run("grep -E ' (linux_banner|init_task|_text)$' /proc/kallsyms", check=True).stdout
    address = next(int(line.split()[0], 16) for line in lines.splitlines() if line.endswith("linux_banner"))
    assert alive.memory.read_virtual(address, 14) == b"Linux version "
    with pytest.raises(GuestError, match="nothing is mapped"):
        alive.memory.read_virtual(0xFFFF_8000_0000_0000 - 4096, 4)
    with pytest.raises(GuestError, match="give the Guest symbols="):
        alive.memory.read_virtual("linux_banner", 4)
    with pytest.raises(GuestError, match="no memory"):
        alive.memory.read(1 << 39, 4)


def test_registers_stay_still_while_it_is_paused(alive: Guest) -> None:
    alive.pause()
    try:
        first = alive.vcpus[0].regs
        assert first == alive.vcpus[0].regs
        assert first["rip"] and first["cr3"]
    finally:
        alive.resume()
    assert alive.run("echo on").stdout == "on\n"


def test_a_command_waits_no_longer_than_it_may(kernel: Callable[[str], Path]) -> None:
    with vmm.Guest(kernel("6.1"), memory="256M", append="quiet", trace=False, timeout=TIMEOUT_S) as guest:
        guest.run("true")
        with pytest.raises(GuestError, match="did not run 'sleep 1000' in time"):
            guest.run("sleep 1000", timeout=1)
        guest.inject_nmi()


def test_a_guest_that_dies_in_a_command_is_an_error_that_says_how(kernel: Callable[[str], Path]) -> None:
    threads = threading.active_count()
    with vmm.Guest(kernel("6.1"), memory="256M", append="quiet panic=0", timeout=TIMEOUT_S) as guest:
        with pytest.raises(GuestError, match=r"ended before it could run .*: the guest's own kernel says that it crashed"):
            guest.run("echo c >/proc/sysrq-trigger")
        assert guest.wait_shutdown(10).reason is ShutdownReason.crash
    assert threading.active_count() == threads


def test_shutdown_asks_the_kernel(kernel: Callable[[str], Path]) -> None:
    with vmm.Guest(kernel("6.1"), memory="256M", append="quiet", timeout=TIMEOUT_S) as guest:
        guest.run("true")
        assert guest.shutdown().reason is ShutdownReason.poweroff


def test_a_seeded_fault_run_repeats_exactly(kernel: Callable[[str], Path]) -> None:
    faults = [Fail("grant_table_op.query_size", errno=errno.ENOSYS), Fail("set_priority", errno=errno.EPERM)]
    seen = []
    for _ in range(2):
        with vmm.Guest(kernel("6.1"), memory="256M", append="quiet", faults=faults, seed=5, timeout=TIMEOUT_S) as guest:
            guest.run("true")
            seen.append([(hit.nth, hit.name) for hit in guest.injected])
            failed = {call.name for call in guest.hypercalls if call.error in ("ENOSYS", "EPERM")}
            assert {"grant_table_op.query_size", "event_channel_op.set_priority"} <= failed
    assert seen[0] == seen[1]
    assert seen[0]


def test_the_trace_of_a_boot_has_no_undecoded_hypercall(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "trace"
    done = pyvmm(
        "run", kernel("6.1"), "--trace=hypercall,exit", "--trace-file", file, "--stats", "--exec", "true",
        "--timeout", TIMEOUT_S, timeout_s=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = file.read_text().splitlines()
    assert len(lines) > 300
    assert all(re.match(r" *[\d.]+ d1v0 +(exit |\w+(\.\w+)?\((\w+=[^,]+(, )?)*\) = )", line) for line in lines)
    assert re.search(r"^ +[\d.]+ +[\d.]+ +[\d.]+ +\d+ +event_channel_op.send$", done.stderr, re.M)
    assert "exits" in done.stderr


PLUGIN_TEST = """
import pytest

@pytest.mark.guest(vcpus=[1, 2], memory="256M", append="quiet", timeout=240)
def test_vcpus(guest):
    assert guest.run("nproc").stdout.strip() in "12"

@pytest.mark.guest(memory="256M", timeout=240)
def test_that_fails(boot_guest):
    guest = boot_guest()
    assert guest.run("cat /sys/hypervisor/type").stdout == "kvm"

@pytest.mark.needs_kvm_xen
def test_needs():
    pass
"""


def test_the_plugin_boots_guests_and_shows_a_failing_ones_console_and_trace(
    kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--guest-kernel", kernel("6.1"), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=3 * TIMEOUT_S)
    assert re.search(r"1 failed, (3 passed|2 passed, 1 skipped) in", done.stdout), done.stdout + done.stderr
    assert "console of guest 0" in done.stdout
    assert "Hypervisor detected: Xen HVM" in done.stdout
    assert re.search(r"^ +[\d.]+ d1v0 +\w+\.\w+\(\w+=.*\) = 0", done.stdout, re.MULTILINE)  # the last lines of its trace
    assert "SKIPPED" not in done.stdout or "built without CONFIG_KVM_XEN" in done.stdout


def test_jsonl_and_perfetto_traces_of_a_boot_are_whole(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    options = ("--trace", "--trace-file", file, "--trace-format", "perfetto", "-c", 2)
    done = pyvmm("run", kernel("6.1"), *options, "--exec", "true", "--timeout", TIMEOUT_S, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    events = json.loads(file.read_text())
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"vCPU 0", "vCPU 1", "xenstore"} <= tracks
    assert any(name.endswith("(device)") for name in tracks)
