"""A hypercall through the whole Python path against a bare exit of the same guest under a C loop."""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.guests import assemble, until_said
from scripts.benchmarks.table import Row
from tests.guests import Transcript, running
from vmm.config.domain import DomainConfig
from vmm.machine.domain import Domain
from vmm.machine.vcpu import Vcpu
from vmm.xenabi.transport import Transport

HERE = Path(__file__).resolve().parent
EXITS = 20000


def measure(runs: int) -> list[Row]:
    """Microseconds an exit, interleaved, and their ratio run by run."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "exits.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "exits.c"], check=True)
        bare = ctypes.CDLL(str(library)).enter_many
        bare.argtypes, bare.restype = (ctypes.c_int, ctypes.c_long), ctypes.c_long
        image = assemble("hypercalls", Path(folder))
        config = DomainConfig(image, transport=Transport.PAGE)
        with running(config) as (domain, transcript):
            vcpu = standing(domain, transcript)
            enter, exits = vcpu.kvm.enter, vcpu.exit_handlers
            python_us, bare_us = [], []
            for _ in range(runs):
                python_us.append(us_each(enter, exits))
                start = time.perf_counter()
                done = bare(vcpu.kvm.fd, EXITS)
                assert done == EXITS
                bare_us.append((time.perf_counter() - start) / EXITS * 1e6)
    ratios = [slow / fast for slow, fast in zip(python_us, bare_us, strict=True)]
    return [
        Row("xen_version, whole Python path", python_us, "us"),
        Row("bare exit of the same guest, C loop", bare_us, "us"),
        Row("ratio", ratios, "times", 2.0),
    ]


def standing(domain: Domain, transcript: Transcript) -> Vcpu:
    """The vCPU of a guest that makes hypercalls, taken from its thread: whoever enters it now does so by hand."""
    until_said("ready", domain, transcript)
    time.sleep(0.1)
    vcpu = domain.vcpus[0]
    vcpu.stop()
    vcpu.join()
    vcpu.kvm.kick_seen()
    return vcpu


def us_each(enter: Callable[[], int], exits: dict[int, Callable[[], None]]) -> float:
    """Microseconds a hypercall."""
    start = time.perf_counter()
    for _ in range(EXITS):
        exits[enter()]()
    return (time.perf_counter() - start) / EXITS * 1e6
