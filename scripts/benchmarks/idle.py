"""What a sleeping guest costs: ten times a second it wakes, sets its timer and halts; % of a CPU, and us a time."""

import tempfile
import time
from pathlib import Path

from scripts.benchmarks.guests import assemble, until_said
from scripts.benchmarks.table import Row
from tests.guests import running
from vmm.config.domain import DomainConfig
from vmm.xenabi.transport import Transport

SAMPLE_S = 3
WAKES_A_SECOND = 10


def measure(runs: int) -> list[Row]:
    """With the timer's hypercall answered in the C loop, and in Python as every other, interleaved."""
    percents: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        image = assemble("sleeper", Path(folder))
        with running(DomainConfig(image, transport=Transport.PAGE)) as (domain, transcript):
            until_said("asleep", domain, transcript)
            vcpu = domain.vcpus[0]
            for _ in range(runs):
                for in_loop, percent in percents.items():
                    vcpu.clock.in_loop = in_loop
                    vcpu.clock.choose_timekeeper()
                    before = vcpu.kvm.answered_in_loop
                    start, used = time.monotonic(), time.process_time()
                    time.sleep(SAMPLE_S)
                    percent.append(100 * (time.process_time() - used) / (time.monotonic() - start))
                    if bool(vcpu.kvm.answered_in_loop - before > 1) is not in_loop:
                        raise SystemExit(f"the guest does not sleep: {transcript.text}")
    each = {where: [one / 100 / WAKES_A_SECOND * 1e6 for one in percent] for where, percent in percents.items()}
    return [
        Row("asleep, timer set in the C loop", percents[True], "%", 1.0),
        Row("asleep, timer set in Python", percents[False], "%"),
        Row("a wake, timer set in the C loop", each[True], "us"),
        Row("a wake, timer set in Python", each[False], "us"),
    ]
