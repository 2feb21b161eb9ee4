"""Traces, statistics and faults of micro-guests, by the command line and in this process."""

import errno
import json
import re
from pathlib import Path

import pytest

from tests.commands import one_sentence, pyvmm
from tests.guests import Transcript
from tests.micro.test_micro import Build
from vmm.boot.image import load_image
from vmm.config.domain import DomainConfig
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.observe.faults import Corrupt, DropEvent, Fail, Fault, Injected, Injector
from vmm.observe.trace.records import Hypercall, Record
from vmm.observe.trace.tracer import Tracer
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.transport import Transport

TIMEOUT_S = 60


class Records:
    """A consumer that keeps them."""

    def __init__(self) -> None:
        self.all: list[Record] = []

    def take(self, record: Record) -> None:
        self.all.append(record)

    def close(self) -> None:
        pass


def observed(image: Path, transport: Transport, faults: list[Fault], seed: int = 0) -> tuple[str, Records, Injector]:
    """Run a guest with faults and look on: its console, what was seen, what was injected."""
    system = System()
    hypervisor = Hypervisor(system)
    transcript, records, injector = Transcript(), Records(), Injector(faults, seed)
    tracer = Tracer([records])
    try:
        config = DomainConfig(image, transport=transport, vcpus=2)
        domain: Domain = build_domain(hypervisor, config.checked(), load_image(image), [], transcript, observed=True)
        injector.attach(domain)
        tracer.attach(domain)
        domain.unpause()
        assert domain.wait(TIMEOUT_S) is not None, transcript.text
    finally:
        hypervisor.close()
        system.close()
    return transcript.text, records, injector


def test_each_hypercall_and_event_leaves_a_record(build: Build) -> None:
    console, records, _ = observed(build("upcall"), Transport.PAGE, [])
    assert console == "PASS\n"
    calls = [record for record in records.all if isinstance(record, Hypercall)]
    assert all(call.decoded for call in calls)
    assert [repr(call) for call in calls if call.name.endswith(".send")] == [
        "event_channel_op.send(port=3) = 0",
        "event_channel_op.send(port=3) = 0",
        "event_channel_op.send(port=3) = EINVAL",
    ]
    told = [(record.name, record.told) for record in records.all if record.kind == "event"]
    assert told[:2] == [("event.ipi", True), ("event.ipi", False)]
    assert ("event.virq_timer", True) in told
    assert all(call.duration_ns > 0 and call.rip for call in calls)


def test_every_entry_of_a_multicall_leaves_a_record(build: Build, page_transport: Transport) -> None:
    _, records, _ = observed(build("multicall"), page_transport, [])
    names = [record.name for record in records.all]
    assert "multicall" in names
    assert "xen_version.version" in names


def test_a_failed_hypercall_is_not_carried_out(build: Build) -> None:
    console, records, injector = observed(build("upcall"), Transport.PAGE, [Fail("bind_ipi", errno=errno.ENOSPC)])
    assert "FAIL bind_ipi" in console
    (seen,) = [record for record in records.all if record.name == "event_channel_op.bind_ipi"]
    assert repr(seen).endswith(" = ENOSPC")
    assert [(hit.nth, hit.name) for hit in injector.injected] == [(1, "event_channel_op.bind_ipi")]


def test_a_lost_event_does_not_arrive(build: Build) -> None:
    console, records, _ = observed(build("upcall"), Transport.PAGE, [DropEvent("ipi", at=1)])
    assert "FAIL no upcall came" in console
    assert next(record.failed for record in records.all if record.name == "event.ipi") is True


def test_a_seeded_run_repeats_exactly(build: Build, page_transport: Transport) -> None:
    faults: list[Fault] = [Fail("xen_version.*", probability=0.3), Corrupt("get_param", every=2)]

    def run(seed: int) -> list[Injected]:
        return observed(build("multicall"), page_transport, faults, seed)[2].injected

    first = run(1)
    assert len(first) > 1
    assert first == run(1)
    assert first != run(2)


def test_run_traces_to_a_file_and_counts(build: Build, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    done = pyvmm(
        "run", build("upcall"), "--transport", "page", "--trace=event_channel_op,failed",
        "--trace-file", file, "--trace-format", "jsonl", "--stats", "--timeout", TIMEOUT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "PASS\n")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(record["name"], record["error"]) for record in records] == [("event_channel_op.send", "EINVAL")]
    assert re.search(r"^ *[\d.]+ +[\d.]+ +[\d.]+ +3 +1  event_channel_op.send$", done.stderr, re.M)
    assert re.search(r"^ +2 +[\d.]+  port 4 \(virq_timer\)$", done.stderr, re.M)


def test_run_injects_faults(build: Build, page_transport: Transport) -> None:
    done = pyvmm(
        "run", build("upcall"), "--transport", page_transport.value, "--timeout", TIMEOUT_S,
        "--fault", "fail:event_channel_op.bind_virq,errno=ENOSPC",
    )  # fmt: skip
    assert "FAIL bind_virq" in done.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--trace=event_chanel_op"], "did you mean 'event_channel_op'?"),
        (["--trace-file", "/tmp/x"], "--trace-file belongs to --trace"),
        (["--trace", "--trace-file", "/absent/x"], "--trace-file /absent/x: No such file or directory"),
        (["--trace", "--symbols", "/absent"], "cannot read symbols from /absent"),
        (["--fault", "break:everything"], "--fault takes fail:NAME"),
        (["--fault", "fail:sched_opp"], "did you mean"),
        (["--fault", "fail:sched_op,errno=ENONSENSE"], "errno=ENONSENSE is not understood"),
        (["--fault", "drop:virq_tmer"], "did you mean 'event.virq_timer'?"),
        (["--fault", "delay:sched_op,seconds=1e9"], "seconds=1e9 is not understood"),
    ],
)
def test_bad_requests_get_one_sentence(build: Build, words: list[str], reason: str) -> None:
    done = pyvmm("run", build("hello"), *words)
    one_sentence(done, done.returncode, reason)
    assert done.returncode in (1, 2)
