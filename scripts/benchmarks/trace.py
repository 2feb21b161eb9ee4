"""What a trace costs a hypercall: the same guest with and without one, in each format."""

import tempfile
from pathlib import Path

from scripts.benchmarks.guests import assemble
from scripts.benchmarks.hypercall import standing, us_each
from scripts.benchmarks.table import Row
from tests.guests import running
from vmm.config.domain import DomainConfig
from vmm.observe.trace.filters import EVERYTHING, parse_filter
from vmm.observe.trace.stats import Stats
from vmm.observe.trace.tracer import Consumer, Tracer
from vmm.observe.trace.writers import JsonWriter, Output, PerfettoWriter, TextWriter
from vmm.xenabi.transport import Transport


def measure(runs: int) -> list[Row]:
    """Microseconds a hypercall, interleaved, and their ratios to a run without a trace."""
    with tempfile.TemporaryDirectory() as folder:
        image = assemble("hypercalls", Path(folder))
        consumers: dict[str, Consumer] = {
            "text": TextWriter(Output(Path(folder) / "text"), EVERYTHING, None),
            "text, nothing taken": TextWriter(Output(Path(folder) / "none"), parse_filter("memory_op"), None),
            "jsonl": JsonWriter(Output(Path(folder) / "jsonl"), EVERYTHING, None),
            "perfetto": PerfettoWriter(Output(Path(folder) / "perfetto"), EVERYTHING, None),
            "statistics": Stats(),
        }
        times: dict[str, list[float]] = {name: [] for name in ("no trace", *consumers)}
        config = DomainConfig(image, transport=Transport.PAGE)
        with running(config, observed=True) as (domain, transcript):
            vcpu = standing(domain, transcript)
            tracer = Tracer([])
            for _ in range(runs):
                for name, samples in times.items():
                    tracer.consumers[:] = [consumers[name]] if name in consumers else []
                    hooks = tracer.attach(domain) if name in consumers else None
                    samples.append(us_each(vcpu.kvm.enter, vcpu.exit_handlers))
                    if hooks is not None:
                        domain.hooks.detach(hooks)
            for consumer in consumers.values():
                consumer.close()
    rows = [Row(name, samples, "us") for name, samples in times.items()]
    for name in consumers:
        ratios = [one / other for one, other in zip(times[name], times["no trace"], strict=True)]
        rows.append(Row(f"{name}, to no trace", ratios, "times", 2.0))
    return rows
