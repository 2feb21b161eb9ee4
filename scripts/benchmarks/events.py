"""An event from the guest and back, an IPI to another vCPU and back, against a hypercall and a bare exit."""

import tempfile
from pathlib import Path

from scripts.benchmarks import hypercall
from scripts.benchmarks.guests import assemble, printed_us, until_said
from scripts.benchmarks.table import Row
from tests.guests import Transcript, running
from vmm.config.domain import DomainConfig
from vmm.host.eventloop import EventLoop
from vmm.kvm import System, XenFlag
from vmm.xenabi.transport import Transport
from vmm.xenabi.values import Domid, Port

ECHO_PORT = Port(4)
TIMEOUT_S = 120


def measure(runs: int) -> list[Row]:
    """Microseconds, with KVM_XEN too where the host has it."""
    transports = [Transport.PAGE]
    if XenFlag.INTERCEPT_HCALL in System().xen_flags():
        transports.append(Transport.KVM_XEN)
    bare = hypercall.measure(runs)[1]
    rows = [bare]
    with tempfile.TemporaryDirectory() as folder:
        image = assemble("rounds", Path(folder))
        samples: dict[Transport, list[tuple[float, ...]]] = {transport: [] for transport in transports}
        for _ in range(runs):
            for transport in transports:
                samples[transport].append(_round_times(DomainConfig(image, vcpus=2, transport=transport)))
    for transport, taken in samples.items():
        calls, echoes, ipis = (list(times) for times in zip(*taken, strict=True))
        rows.append(Row(f"{transport}: hypercall", calls, "us"))
        rows.append(Row(f"{transport}: event to a back end's thread and back", echoes, "us"))
        rows.append(Row(f"{transport}: IPI to another vCPU and back", ipis, "us"))
        for name, times in (("event", echoes), ("IPI", ipis)):
            ratios = [one / exit_us for one, exit_us in zip(times, bare.samples, strict=True)]
            rows.append(Row(f"{transport}: {name} there and back to a bare exit", ratios, "times"))
    return rows


def _round_times(config: DomainConfig) -> tuple[float, ...]:
    transcript, khz = run_rounds(config)
    return tuple(printed_us(transcript, khz))


def run_rounds(config: DomainConfig) -> tuple[Transcript, int]:
    """The micro-guest `rounds` with a back end that echoes, to its end: what it said, and its TSC's kHz."""
    with running(config) as (domain, transcript):
        until_said("connect\n", domain, transcript)
        khz = domain.vcpus[0].kvm.tsc_khz()
        back_end = EventLoop("echo")
        back_end.start()
        try:
            domain.events.connect(ECHO_PORT, Domid(0), back_end.doorbell(lambda: domain.events.deliver(ECHO_PORT)))
            domain.wait(TIMEOUT_S)
            domain.stop()
        finally:
            back_end.stop()
    return transcript, khz
