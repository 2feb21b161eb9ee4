"""Micro-guests: small assembly guests, each with its file beside this one."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests import Ended, run, running
from vmm.boot.image import load_image
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig
from vmm.config.features import COMBINATIONS
from vmm.host.cpuinfo import cpu_flags
from vmm.kvm import System
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.constants import ShutdownReason
from vmm.xenabi.cpuid import xen_leaves
from vmm.xenabi.transport import Transport

Build = Callable[[str], Path]
MIB = 1 << 20


def passes(ended: Ended) -> None:
    """The guest says PASS and nothing failed."""
    assert "FAIL" not in ended.console, ended.console
    assert "PASS" in ended.console, (ended.console, ended.outcome)
    assert ended.outcome is not None
    assert ended.outcome.reason is ShutdownReason.poweroff


def test_hello_finds_xen_prints_and_powers_off(build: Build, page_transport: Transport) -> None:
    ended = run(DomainConfig(build("hello"), transport=page_transport))
    passes(ended)
    assert ended.console.startswith("hello from a micro-guest\n")


def test_direct_vmcall_reaches_pyvmm(build: Build, direct_transport: Transport) -> None:
    passes(run(DomainConfig(build("direct"), transport=direct_transport)))


def test_direct_vmcall_gets_a_transport_by_itself(build: Build, system: System) -> None:
    ended = run(DomainConfig(build("direct")))
    passes(ended)
    assert ended.domain.transport in (Transport.PATCH, Transport.KVM_XEN)


def test_32_bit_caller_uses_the_32_bit_convention(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("caller32"), transport=page_transport)))


@pytest.mark.skipif(
    not {"vmx", "svm"} & cpu_flags(),
    reason="needs VT-x or AMD-V: a KVM that emulates faults on an interrupt from user code",
)
def test_user_code_gets_eperm(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("cpl3"), transport=page_transport)))


def test_every_bad_pointer_is_efault(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("badptr"), memory_bytes=64 * MIB, transport=page_transport)))


def test_long_multicall_gives_way_and_completes(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("multicall"), transport=page_transport), timeout_s=120))


@pytest.mark.parametrize("delivery", ["upcall", "callback"])
def test_event_channels_interrupt_the_guest(build: Build, page_transport: Transport, delivery: str) -> None:
    passes(run(DomainConfig(build(delivery), transport=page_transport), timeout_s=60))


def test_a_poll_sleeps_until_its_time_and_not_beyond(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("polls"), transport=page_transport), timeout_s=60))


@pytest.mark.parametrize("vcpus", [1, 2, 4, 16])
def test_every_vcpu_comes_up_takes_ipis_and_goes_down(build: Build, page_transport: Transport, vcpus: int) -> None:
    ended = run(DomainConfig(build("smp"), vcpus=vcpus, transport=page_transport), timeout_s=120)
    passes(ended)
    assert f"{vcpus:016x}" in ended.console


def test_run_state_and_second_clock_are_kept(build: Build, page_transport: Transport) -> None:
    ended = run(DomainConfig(build("runstate"), transport=page_transport), timeout_s=60)
    passes(ended)
    assert ("time area" in ended.console) is (page_transport is Transport.KVM_XEN)


def test_cpuid_shows_xen_as_the_reference_does(build: Build, page_transport: Transport) -> None:
    ended = run(DomainConfig(build("cpuid"), transport=page_transport))
    passes(ended)
    shown = {}
    for line in ended.console.splitlines():
        if match := re.fullmatch(r"([0-9a-f]{16})\.([0-9a-f]{16}):((?:[0-9a-f]{16} ?){4})", line):
            shown[int(match[1], 16), int(match[2], 16)] = tuple(int(word, 16) for word in match[3].split())
    assert len(shown) == 18
    khz = shown[0x40000003, 2][0]
    assert khz > 0
    for leaf in xen_leaves((4, 17), 0, 1, khz):
        subleaves = range(3) if leaf.subleaf is None else [leaf.subleaf]
        for subleaf in subleaves:
            found = shown[leaf.function, subleaf]
            if (leaf.function, subleaf) == (0x40000003, 1):
                # KVM with KVM_XEN fills in the scale that it uses itself.
                assert found[2] * 2.0 ** (found[3] - (1 << 32 if found[3] >> 31 else 0)) == pytest.approx(
                    leaf.ecx * 2.0 ** (leaf.edx - (1 << 32 if leaf.edx >> 31 else 0)), rel=1e-3
                )
            else:
                assert found == leaf[2:], f"leaf {leaf.function:#x}.{subleaf}"


def test_model_specific_registers_and_sizes_of_addresses_are_xens(build: Build, page_transport: Transport) -> None:
    ended = run(DomainConfig(build("msrs"), transport=page_transport))
    passes(ended)
    page, machine_checks, addresses = (int(word, 16) for word in ended.console.splitlines()[0].split())
    assert page == 0
    assert machine_checks == 2
    assert addresses >> 16 == 0
    assert 36 <= addresses & 0xFF <= 52
    assert 48 <= addresses >> 8 & 0xFF <= 57


def test_memory_map_by_hypercall_is_the_one_in_start_info(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("memory"), transport=page_transport)))


@pytest.mark.skipif(
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 << 30,
    reason="needs a host with 6 GiB: pyvmm gives a guest no more than the host has",
)
def test_six_gib_guest_starts_with_its_ram_untouched(build: Build, page_transport: Transport) -> None:
    before = _resident_kib()
    with running(DomainConfig(build("memory"), memory_bytes=6 << 30, transport=page_transport)) as (domain, transcript):
        outcome = domain.wait(60)
        domain.stop()
        grown = _resident_kib() - before
    assert outcome is not None
    assert "PASS" in transcript.text, transcript.text
    assert "0000000100000000" in transcript.text
    assert grown < 64 * 1024


def _resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1])


def test_triple_fault_is_a_crash_with_registers_and_code(build: Build, page_transport: Transport) -> None:
    ended = run(DomainConfig(build("triple"), transport=page_transport))
    assert ended.outcome is not None
    assert ended.outcome.reason is ShutdownReason.crash
    assert ended.outcome.text.startswith("triple fault")
    report = "\n".join(ended.outcome.report)
    if "svm" in cpu_flags():
        assert "AMD-V keeps no state" in ended.outcome.text
        assert "rip=000000000000fff0" in report
        return
    assert "rax=000000005ca1ab1e" in report
    assert "code at rip: 0f 0b" in report


def test_endless_loop_is_stopped_at_once(build: Build, page_transport: Transport) -> None:
    with running(DomainConfig(build("loop"), transport=page_transport)) as (domain, transcript):
        deadline = time.monotonic() + 30
        while "looping" not in transcript.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "looping" in transcript.text
        assert domain.wait(0.2) is None
        domain.stop()
    assert domain.outcome is None


def test_a_vcpus_thread_takes_no_signal_that_is_meant_for_the_process(build: Build, page_transport: Transport) -> None:
    with running(DomainConfig(build("loop"), transport=page_transport)) as (domain, transcript):
        deadline = time.monotonic() + 30
        while "looping" not in transcript.text and time.monotonic() < deadline:
            time.sleep(0.05)
        status = Path(f"/proc/self/task/{domain.vcpus[0].thread_id}/status").read_text()
    found = re.search(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert found is not None
    blocked = {number for number in range(1, 65) if int(found[1], 16) >> number - 1 & 1}
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD} <= blocked
    assert signal.SIGSEGV not in blocked


def test_64_mib_image_arrives_whole(build: Build, page_transport: Transport) -> None:
    passes(run(DomainConfig(build("big"), memory_bytes=128 * MIB, transport=page_transport)))


def test_guest_sees_its_modules_and_command_lines(build: Build, page_transport: Transport) -> None:
    modules = [
        Module("first", memoryview(b"one\n"), "about one"),
        Module("second", memoryview(b"two\n" * 3000)),
        Module("third", memoryview(b"three\n"), "about three"),
    ]
    ended = run(DomainConfig(build("modules"), command_line="for the kernel", transport=page_transport), modules)
    passes(ended)
    expected = f"{4:016x}:one\n[about one]\n{12000:016x}:{'two' + chr(10)}" + "two\n" * 2999
    assert ended.console.startswith(expected)
    assert ended.console.endswith(f"{6:016x}:three\n[about three]\n[for the kernel]\nPASS\n")


@pytest.mark.parametrize("reason", ShutdownReason, ids=lambda reason: reason.name)
def test_shutdown_reason_is_reported(build: Build, page_transport: Transport, reason: ShutdownReason) -> None:
    ended = run(DomainConfig(build("shutdown"), command_line=str(int(reason)), transport=page_transport))
    assert ended.outcome is not None
    assert ended.outcome.reason is reason


def test_fifty_guests_one_after_the_other_leave_nothing_behind(build: Build, system: System) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    config = DomainConfig(build("shutdown"), command_line="1")
    run(config)
    before = held()
    for _ in range(50):
        ended = run(config)
        assert ended.outcome is not None
        assert ended.outcome.reason is ShutdownReason.reboot
    assert held() == before


def test_a_flood_of_output_arrives_whole_and_does_not_pile_up(build: Build, system: System) -> None:
    class Counter:
        taken = 0

        def write(self, data: bytes) -> None:
            self.taken += len(data)

    def peak_kib() -> int:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

    counter, hypervisor = Counter(), Hypervisor(system)
    before = peak_kib()
    try:
        domain = build_domain(hypervisor, DomainConfig(build("flood")), load_image(build("flood")), [], counter)
        domain.unpause()
        outcome = domain.wait(120)
        domain.stop()
    finally:
        hypervisor.close()
    assert outcome is not None
    assert outcome.reason is ShutdownReason.poweroff
    assert counter.taken == 1600 * 65536 + len("PASS\n")
    assert peak_kib() - before < 16 << 10


def test_a_dom0s_clock_button_and_pci_bus_reach_it(build: Build, page_transport: Transport) -> None:
    config = DomainConfig(build("pc"), transport=page_transport, features=COMBINATIONS["pvh-dom0"], own_xenstore=True)
    with running(config) as (domain, transcript):
        deadline = time.monotonic() + 60
        while "button" not in transcript.text and domain.wait(0.1) is None and time.monotonic() < deadline:
            pass
        assert "button" in transcript.text, transcript.text
        assert domain.board.power.press_power_button()
        outcome = domain.wait(60)
        domain.stop()
        passes(Ended(transcript.text, outcome, domain))
