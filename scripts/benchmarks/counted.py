"""What `scripts/bench exact` runs in its L1, whose TSC counts instructions: each task, and the instructions that it took.

`python -m scripts.benchmarks.counted FOLDER RUNS` reads FOLDER/tasks.json and writes FOLDER/counted.json.  It imports
nothing of pyvmm's: a task's tree is what its working directory holds.
"""

import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HEX_LINE = re.compile(r"^[0-9a-f]{16}$", re.MULTILINE)
RESULT_LINE = re.compile(r"^RESULT (\S+) ([\d.]+)\s*$", re.MULTILINE)
FIRST_LINE = re.compile(r"^first (\d+)$", re.MULTILINE)

TIMEOUT_S = 6
"""Of L1's time, for a command."""


class Task(NamedTuple):
    """A command, and what of it counts.

    `kind`: `spent`, from exec to the end of the command, or to a line with `mark` in it, where it is killed, and to the
    monotonic time that it names in a line `first NS`, if it does; `printed`, the lines of 16 hexadecimal digits that it
    prints, which are instructions already; `result`, its lines `RESULT NAME NUMBER`, as they are.
    """

    name: str
    kind: str
    command: list[str]
    cwd: str
    environment: dict[str, str]
    mark: str = ""


def per_second() -> float:
    """Instructions of a second of L1's time."""
    found = re.search(r"^cpu MHz\s*: ([\d.]+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("/proc/cpuinfo has no cpu MHz")
    return float(found[1]) * 1e6


def run(task: Task, hz: float) -> dict[str, float]:
    """One run: figures by name, none if it failed, which is said."""
    mark = task.mark.encode()
    start_ns = time.monotonic_ns()
    said = b""
    with subprocess.Popen(
        task.command, cwd=task.cwd, env={**os.environ, **task.environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        end = time.monotonic() + TIMEOUT_S
        while select.select([process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
            chunk = os.read(process.stdout.fileno(), 65536)
            said += chunk
            if not chunk or (mark and mark in said):
                break
        else:
            process.kill()
        if mark:
            spent_ns = time.monotonic_ns() - start_ns
            process.kill()
        status = process.wait()
        if not mark:
            spent_ns = time.monotonic_ns() - start_ns
    text = said.decode(errors="replace")
    if mark not in said or (status and not mark):
        print(f"{task.name}: failed ({status}): {text[-2000:]}", file=sys.stderr, flush=True)
        return {}
    if task.kind == "printed":
        return {str(index): float(int(line, 16)) for index, line in enumerate(HEX_LINE.findall(text))}
    if task.kind == "result":
        return {name: float(value) for name, value in RESULT_LINE.findall(text)}
    first = FIRST_LINE.search(text)
    return {"end": spent_ns * hz / 1e9} | ({"first": (int(first[1]) - start_ns) * hz / 1e9} if first else {})


def main() -> None:
    folder, runs = Path(sys.argv[1]), int(sys.argv[2])
    tasks = [Task(**fields) for fields in json.loads((folder / "tasks.json").read_text())]
    hz = per_second()
    found: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        warm = task.kind == "spent"  # after a run that fills the page cache, and does not count
        for number in range(runs + warm):
            figures = run(task, hz)
            if not figures:
                break
            if number >= warm:
                found.setdefault(task.name, []).append(figures)
        print(f"{task.name}: {found.get(task.name)}", file=sys.stderr, flush=True)
        (folder / "counted.json").write_text(json.dumps({"hz": hz, "found": found}))


if __name__ == "__main__":
    main()
