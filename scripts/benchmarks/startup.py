"""From exec of `pyvmm run` to its first KVM_RUN, and what the process holds."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.guests import assemble
from scripts.benchmarks.table import Row

LARGEST_IMPORTS = 6

# The command itself, but for one line on stderr when the guest is first entered.
PROBE = """
import os, sys, time
from vmm.kvm import vcpu
enter = vcpu.VcpuFd.enter
def first(self):
    sys.stderr.write(f"first {time.monotonic_ns()}\\n")
    vcpu.VcpuFd.enter = enter
    return enter(self)
vcpu.VcpuFd.enter = first
from vmm.cli.main import main
status = main()
times = os.times()
sys.stderr.write(f"cpu {times.user + times.system}\\n")
sys.stderr.write("peak " + [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1] + "\\n")
sys.exit(status)
"""


def measure(runs: int) -> list[Row]:
    """Milliseconds and MiB."""
    with tempfile.TemporaryDirectory() as folder:
        image = assemble("hello", Path(folder))
        first_ms, interpreter_ms, cpu_ms, peak_mib = [], [], [], []
        for _ in range(runs):
            start = time.monotonic_ns()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            interpreter_ms.append((time.monotonic_ns() - start) / 1e6)
            start = time.monotonic_ns()
            done = subprocess.run(
                [sys.executable, "-c", PROBE, "run", "--pvh", str(image)], capture_output=True, text=True, check=True
            )
            said = dict(line.split() for line in done.stderr.splitlines())
            first_ms.append((int(said["first"]) - start) / 1e6)
            cpu_ms.append(float(said["cpu"]) * 1e3)
            peak_mib.append(int(said["peak"]) / 1024)
        imports = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", PROBE, "run", "--pvh", str(image)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return [
        Row("exec of pyvmm run to the first KVM_RUN", first_ms, "ms", 120),
        Row("of which: an empty Python, start to end", interpreter_ms, "ms"),
        Row("CPU time of the whole run, which prints a line", cpu_ms, "ms"),
        *_imports(imports.stderr),
        Row("peak resident memory, guest's few pages included", peak_mib, "MiB", 45),
    ]


def _imports(said: str) -> list[Row]:
    """Milliseconds in importing each package's own modules (`-X importtime`), the largest first."""
    spent: dict[str, float] = {}
    for match in re.finditer(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", said, re.MULTILINE):
        package = match[2].partition(".")[0]
        spent[package] = spent.get(package, 0) + int(match[1]) / 1e3
    largest = sorted(spent.items(), key=lambda item: -item[1])[:LARGEST_IMPORTS]
    return [Row(f"importing {name}, under -X importtime", [ms], "ms") for name, ms in largest]
