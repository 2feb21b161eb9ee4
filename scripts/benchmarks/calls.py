"""Hypercalls measured by the guest: by one vCPU, and by two and four at once, each transport, against a bare exit in C."""

import tempfile
from pathlib import Path

from scripts.benchmarks import hypercall
from scripts.benchmarks.guests import assemble, printed_us
from scripts.benchmarks.table import Row
from tests.guests import running
from vmm.config.domain import DomainConfig
from vmm.kvm import System, XenFlag
from vmm.xenabi.transport import Transport

OPERATIONS = ("xen_version", "event send", "single-shot timer")
IN_KERNEL = ("event send", "single-shot timer")
VCPUS = (2, 4)
TIMEOUT_S = 300


def measure(runs: int) -> list[Row]:
    """Microseconds, ratios to the bare exit, and how the rate grows with the vCPUs."""
    system = System()
    flags = system.xen_flags()
    system.close()
    transports = [Transport.PAGE] + ([Transport.KVM_XEN] if XenFlag.INTERCEPT_HCALL in flags else [])
    bare = hypercall.measure(runs)[1]
    taken: dict[tuple[Transport, int], list[list[float]]] = {(one, n): [] for one in transports for n in VCPUS}
    with tempfile.TemporaryDirectory() as folder:
        image = assemble("calls", Path(folder))
        for _ in range(runs):
            for (transport, vcpus), samples in taken.items():
                samples.append(_times(DomainConfig(image, vcpus=vcpus, transport=transport)))
    rows = [bare]
    for transport in transports:
        for index, name in enumerate(OPERATIONS):
            alone = [sample[2 * index] for sample in taken[transport, VCPUS[0]]]
            rows.append(Row(f"{transport}: {name}", alone, "us"))
            limit = None
            if name in IN_KERNEL:
                limit = 1.2 if transport is Transport.KVM_XEN and XenFlag.EVTCHN_SEND in flags else 2.5
            ratios = [one / exit_us for one, exit_us in zip(alone, bare.samples, strict=True)]
            rows.append(Row(f"{transport}: {name}, to a bare exit", ratios, "times", limit))
            for vcpus in VCPUS:
                rates = [vcpus * sample[2 * index] / sample[2 * index + 1] for sample in taken[transport, vcpus]]
                least = 0.9 if vcpus == 2 and name == "xen_version" else None
                rows.append(Row(f"{transport}: {name}, rate of {vcpus} vCPUs to one", rates, "times", least=least))
    return rows


def _times(config: DomainConfig) -> list[float]:
    with running(config) as (domain, transcript):
        khz = domain.vcpus[0].kvm.tsc_khz()
        domain.wait(TIMEOUT_S)
        domain.stop()
    return printed_us(transcript, khz)
