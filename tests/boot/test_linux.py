"""Stock Debian kernels from their first line to power-off."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.reference import FACTS, listed, normal, reference
from tests.commands import pyvmm, started
from tests.guests import Ended, run, running
from vmm.boot.image import open_file
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig
from vmm.kvm import System, XenFlag
from vmm.toolstack.lifecycle import why_no_hypercalls
from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.transport import Transport
from vmm.xenstore.client import Client

COMMANDS = b"""cd /sys/hypervisor; clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
echo $(uname -r | cut -d. -f1,2) $(cat type guest_type $clock) $(nproc) cpus
poweroff -f
"""
TIMEOUT_S = 240


def boot(
    image: Path,
    initrd: Path,
    transport: Transport | None,
    command_line: str = "console=hvc0 earlyprintk=xen ignore_loglevel",
) -> Ended:
    config = DomainConfig(image, command_line=command_line, memory_bytes=256 << 20, transport=transport)
    module = Module("the initrd", memoryview(open_file(initrd, "initrd")))
    return run(config, [module], timeout_s=TIMEOUT_S)


def powered_off(ended: Ended) -> None:
    assert ended.outcome is not None, ended.console[-3000:]
    assert ended.outcome.reason is ShutdownReason.poweroff, (ended.outcome, ended.console[-3000:])


def test_debian_6_1_sees_what_it_sees_on_xen(
    kernel: Callable[[str], Path], initramfs: Callable[[str], Path], system: System
) -> None:
    expected, known = reference(), listed()
    with_kvm_xen = XenFlag.INTERCEPT_HCALL in system.xen_flags()
    for transport in [Transport.KVM_XEN, Transport.PATCH] if with_kvm_xen else [Transport.PATCH]:
        ended = boot(kernel("6.1"), initramfs(FACTS), transport)
        powered_off(ended)
        assert ended.console.startswith("[    0.000000] Linux version 6.1.")
        assert "Xen version: 4.17.7" in ended.console
        shown = set(normal(ended.console))
        own = known["pyvmm"] | (set() if transport is Transport.KVM_XEN else known["pyvmm without KVM_XEN"])
        assert sorted(expected - shown) == sorted(known["Xen"])
        assert sorted(shown - expected) == sorted(own)
        assert not why_no_hypercalls(ended.domain)


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("version", ["5.10", "6.1", "6.12", "7.2"])
def test_debian_runs_a_command_typed_on_the_xen_console(
    kernel: Callable[[str], Path], initramfs: Callable[[str], Path], system: System, version: str, vcpus: int
) -> None:
    # One vCPU: as the distribution has it.  Two: as an extracted vmlinux, by the transport that any KVM has.
    image = kernel(version if vcpus == 1 else f"--vmlinux {version}")
    script = 'echo "shell is ready"; exec sh </dev/hvc0 >/dev/hvc0 2>&1\n'
    module = Module("the initrd", memoryview(open_file(initramfs(script), "initrd")))
    transport = None if vcpus == 1 else Transport.PATCH
    config = DomainConfig(image, command_line="console=hvc0", memory_bytes=256 << 20, vcpus=vcpus, transport=transport)
    with running(config, [module]) as (domain, transcript):
        deadline = time.monotonic() + TIMEOUT_S
        while "shell is ready" not in transcript.text and domain.wait(0.2) is None and time.monotonic() < deadline:
            pass
        assert "shell is ready" in transcript.text, transcript.text[-3000:]
        domain.console.type(COMMANDS)
        outcome = domain.wait(TIMEOUT_S)
        domain.stop()
    text = transcript.text
    assert "Hypervisor detected: Xen HVM" in text
    assert f"\r\n{version} xen PVH xen {vcpus} cpus\r\n" in text, text[-3000:]
    assert outcome is not None, text[-3000:]
    assert outcome.reason is ShutdownReason.poweroff


def test_exec_runs_a_command_and_returns_its_status(kernel: Callable[[str], Path], system: System) -> None:
    # On the 2-level ABI, which KVM carries out by itself where it has KVM_XEN.
    command = "cat /sys/hypervisor/type; nproc; dmesg | grep -o 'Using 2-level ABI'; exit 7"
    options = ("-c", 2, "--append", "xen.fifo_events=0", "--timeout", TIMEOUT_S)
    done = pyvmm("run", kernel("--vmlinux 6.1"), *options, "--exec", command, timeout_s=TIMEOUT_S)
    assert (done.returncode, done.stdout, done.stderr) == (7, "xen\n2\nUsing 2-level ABI\n", "")


@pytest.mark.parametrize("typed", ["", "sleep 3; cat; echo $((6 * 7)) is the answer\n"])
def test_the_end_of_the_input_ends_the_shell(kernel: Callable[[str], Path], system: System, typed: str) -> None:
    done = pyvmm("run", kernel("6.1"), "--append", "quiet", "--timeout", TIMEOUT_S, timeout_s=TIMEOUT_S, typed=typed)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr)
    assert ("42 is the answer\n" in done.stdout.replace("\r", "")) == bool(typed)


def test_sigterm_asks_the_guest_to_power_off(
    kernel: Callable[[str], Path], initramfs: Callable[[str], Path], system: System
) -> None:
    initrd = initramfs("echo ready; sleep 1000\n")
    with started(
        "run", kernel("--vmlinux 6.1"), "--initrd", initrd, "--append", "quiet", "--timeout", TIMEOUT_S
    ) as process:
        assert process.stdout is not None
        said = ""
        while "ready" not in said and (line := process.stdout.readline()):
            said += line
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=TIMEOUT_S)
    assert errors.startswith("pyvmm: asked the guest to power off")
    assert "reboot: Power down" in rest
    assert process.returncode == 130


def test_tools_on_the_host_balloon_the_guest_and_shut_it_down(
    kernel: Callable[[str], Path], initramfs: Callable[[str], Path], system: System, tmp_path: Path
) -> None:
    initrd = initramfs("while :; do grep MemTotal /proc/meminfo; sleep 1; done\n")
    store = tmp_path / "xenstore"
    with started(
        "run",
        kernel("--vmlinux 6.1"),
        "-m",
        256,
        "--initrd",
        initrd,
        "--append",
        "quiet",
        "--xenstore",
        store,
        "--timeout",
        TIMEOUT_S,
    ) as process:
        assert process.stdout is not None
        totals = (int(found[1]) for line in process.stdout if (found := re.match(r"MemTotal: +(\d+) kB", line)))
        full = next(totals)
        with Client(store) as client:
            assert client.read("/local/domain/1/control/feature-poweroff") == b"1"
            client.write("/local/domain/1/memory/target", b"245760")
            assert any(total < full - 8192 for total in totals)
            client.write("/local/domain/1/memory/target", b"262144")
            assert any(total == full for total in totals)
            client.write("/local/domain/1/control/shutdown", b"poweroff")
        assert "reboot: Power down" in process.stdout.read()
        assert process.wait(TIMEOUT_S) == 0


def test_panic_is_a_crash_with_the_guests_last_words(
    kernel: Callable[[str], Path], initramfs: Callable[[str], Path], system: System
) -> None:
    ended = boot(kernel("6.1"), initramfs("echo c >/proc/sysrq-trigger\n"), None, "console=hvc0 quiet panic=-1")
    assert ended.outcome is not None
    assert ended.outcome.reason in (ShutdownReason.crash, ShutdownReason.reboot)
    assert "Kernel panic" in ended.console


def test_a_command_of_exec_that_panics_the_kernel_shows_the_panic_and_the_registers(
    kernel: Callable[[str], Path], system: System
) -> None:
    done = pyvmm("run", kernel("6.1"), "-m", "256M", "--exec", "echo c >/proc/sysrq-trigger", timeout_s=TIMEOUT_S)
    assert done.returncode == 3, done
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stdout
    assert re.search(r"^  rip=[0-9a-f]{16} ", done.stderr, re.MULTILINE), done.stderr
