"""Figures in instructions, from an L1 in Bochs, whose time counts them: they do not depend on this machine or its load.

`scripts/bench exact [--against COMMIT]`; two runs of one tree agree within 1 %.  What L1 idles counts as well,
as if it had gone on.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from scripts.benchmarks import boot
from scripts.benchmarks.counted import Task
from scripts.benchmarks.devices import compiled, initramfs
from scripts.benchmarks.guests import assemble
from scripts.benchmarks.monitors import ROOT, Monitor, kernel, pyvmm, qemu_kvm, qemu_xen
from scripts.benchmarks.startup import PROBE
from scripts.benchmarks.table import Row

RUNS = 2
MIPS = 2000
"""As many as a machine has, so that a tick comes after as much work as there."""
KERNEL = "6.12"
TIMEOUT_S = 7200
HERE, BEFORE = "this tree", "before"
CALLS = ("xen_version", None, "event send", None, "single-shot timer", None)
ROUNDS = (None, "an event to a back end's thread and back", "an IPI to another vCPU and back")
MAPS = (None, "map 1 grant", "unmap 1 grant", "map 32 grants", "unmap 32 grants", "map 512 grants", "unmap 512 grants")
PRINTED = {"calls": CALLS, "rounds": ROUNDS, "maps": MAPS}
"""What the lines of a micro-guest are; None: of no interest here."""
TRANSPORTS = ("page", "kvm-xen")
BLOCK_JOBS = {"random read of 4 KiB": "read random 4096 1", "read of 1 MiB": "read seq 1048576 4"}
BLOCK_S, DISK_BYTES = 0.2, 64 << 20
BLOCK_SCRIPT = "while [ ! -e /dev/xvda ]; do sleep 0.1; done\n" + "".join(
    f"echo RESULT {name.replace(' ', '-')} $(blockio /dev/xvda {job} {BLOCK_S})\n" for name, job in BLOCK_JOBS.items()
)
SAMPLE_S = 0.02
GUEST_CALLS = (
    "null-call",
    "read",
    "stat",
    "open-close",
    "signal-handle",
    "fork",
    "exec",
    "switch-2p-0K",
    "page-fault",
    "mmap",
)
LIMITS = {
    "page: xen_version": 13_000.0,
    "exec to /init, vmlinuz, to QEMU's Xen emulation": 0.8,
} | {f"guest, {name}, to plain KVM": 1.05 for name in GUEST_CALLS}


def measure(runs: int, against: str | None = None) -> list[Row]:
    """Rows of this tree, of another commit's beside it if asked for, and of QEMU."""
    subprocess.run([ROOT / "scripts/kernel", "--vmlinux", "6.1"], stdout=subprocess.DEVNULL, check=True)
    with tempfile.TemporaryDirectory(prefix="pyvmm-exact-") as name:
        folder = Path(name)
        trees = {HERE: ROOT}
        if against is not None:
            trees[BEFORE] = _checked_out(against, folder / BEFORE)
        tasks = list(_tasks(trees, folder))
        (folder / "tasks.json").write_text(json.dumps([task._asdict() for task in tasks]))
        command: list[str | Path] = [ROOT / "ci/nested", "--cpu", "intel", "--kernel", KERNEL, "--mips", str(MIPS)]
        command += ["--out", folder, "--timeout", str(TIMEOUT_S), "--"]
        command += [sys.executable, "-m", "scripts.benchmarks.counted", folder, str(runs)]
        if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode:
            raise SystemExit("scripts/bench: the L1 in Bochs did not come to its end")
        counted = json.loads((folder / "counted.json").read_text())
    return rows(counted["found"], counted["hz"])


def _checked_out(commit: str, folder: Path) -> Path:
    """A commit's tree with its extension built and its byte code made; SystemExit with a reason."""
    found = _ran(["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], ROOT)
    if found.returncode:
        raise SystemExit(f"scripts/bench: git knows no commit {commit!r}; name one of this repository's")
    folder.mkdir()
    archive = subprocess.run(["git", "archive", found.stdout.strip()], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    built = _ran([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], folder)
    if built.returncode:
        raise SystemExit(f"scripts/bench: cannot build the extension of {commit}: {built.stderr.strip()[-500:]}")
    shutil.rmtree(folder / "build", ignore_errors=True)
    _ran(
        ["env", "-u", "PYTHONDONTWRITEBYTECODE", sys.executable, "-m", "compileall", "-q", "vmm", "scripts", "tests"],
        folder,
    )
    return folder


def _ran(command: list[str], where: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


def _tasks(trees: dict[str, Path], folder: Path) -> Iterable[Task]:
    images = {name: str(assemble(name, folder)) for name in ("hello", *PRINTED)}
    places = [folder / name for name in ("boot", "block", "guest")]
    for place in places:
        place.mkdir()
    to_init = places[0] / "initrd"
    to_init.write_bytes(boot.initramfs())
    blocks = initramfs(compiled("blockio", places[1]), "xen_blkfront", BLOCK_SCRIPT, places[1])
    calls = initramfs(compiled("guestops", places[2]), None, f"guestops {SAMPLE_S} 1\n", places[2])
    disk = folder / "disk"
    disk.write_bytes(bytes(DISK_BYTES))
    mark = boot.MARK.decode()
    yield Task("the disk into the page cache", "spent", ["dd", f"if={disk}", "of=/dev/null", "bs=1M"], str(ROOT), {})
    for tree, place in trees.items():
        for name, kind, command in _own_tasks(images, to_init, blocks, calls, disk):
            yield Task(f"{tree}: {name}", kind, command, str(place), {}, mark if name.startswith("boot") else "")
    xen_disk = ("-drive", f"file={disk},if=none,id=d,format=raw", "-device", "xen-disk,drive=d,vdev=xvda")
    for name, kind, monitor in (
        ("QEMU: boot vmlinuz", "spent", qemu_xen(to_init)),
        ("QEMU: block", "result", qemu_xen(blocks, *xen_disk)),
        ("QEMU: guest", "result", qemu_xen(calls)),
        ("KVM: boot vmlinuz", "spent", qemu_kvm(to_init)),
        ("KVM: guest", "result", qemu_kvm(calls)),
    ):
        own = {key: value for key, value in monitor.environment.items() if os.environ.get(key) != value}
        yield Task(name, kind, monitor.command, str(ROOT), own, mark if "boot" in name else "")


def _own_tasks(
    images: dict[str, str], to_init: Path, blocks: Path, calls: Path, disk: Path
) -> Iterable[tuple[str, str, list[str]]]:
    """Name, kind and command of what is asked of a tree."""
    probe, inside = [sys.executable, "-c", PROBE], [sys.executable, "-m", "scripts.benchmarks.printed"]
    yield "hello", "spent", [*probe, "run", images["hello"]]
    for transport in TRANSPORTS:
        yield f"{transport} calls", "printed", [*probe, "run", "--transport", transport, images["calls"]]
        yield f"{transport} rounds", "printed", [*inside, "rounds", transport, images["rounds"]]
    yield "page maps", "printed", [*inside, "maps", "page", images["maps"]]
    for image, options in (("vmlinuz", ()), ("vmlinux", ("--vmlinux",))):
        yield f"boot {image}", "spent", [*probe, *_arguments(pyvmm(to_init, image=kernel(*options)))]
    yield "block", "result", [*probe, *_arguments(pyvmm(blocks, "--disk", str(disk)))]
    yield "guest", "result", [*probe, *_arguments(pyvmm(calls))]


def _arguments(monitor: Monitor) -> list[str]:
    return monitor.command[3:]  # behind python -c PROGRAM


class _Figure(NamedTuple):
    """A row: what it is called, the task and the figure in it, and how much of its unit that is."""

    name: str
    task: str
    key: str
    unit: str
    each: Callable[[float], float]


def _figures(hz: float) -> Iterable[_Figure]:
    """All that a tree is asked for, by the names that rows have."""

    def plain(instructions: float) -> float:
        return instructions

    def millions(instructions: float) -> float:
        return instructions / 1e6

    yield _Figure("pyvmm run hello, exec to end", "hello", "end", "M", millions)
    yield _Figure("pyvmm run hello, exec to the first KVM_RUN", "hello", "first", "M", millions)
    for transport in TRANSPORTS:
        for task, names in PRINTED.items():
            for index, name in enumerate(names):
                if name is not None and (transport == "page" or task != "maps"):
                    yield _Figure(f"{transport}: {name}", f"{transport} {task}", str(index), "instr", plain)
    for image in ("vmlinuz", "vmlinux"):
        yield _Figure(f"exec to the first KVM_RUN, {image}", f"boot {image}", "first", "M", millions)
        yield _Figure(f"exec to /init, {image}", f"boot {image}", "end", "M", millions)
    for name in BLOCK_JOBS:
        yield _Figure(f"block, {name}", "block", name.replace(" ", "-"), "instr", lambda rate: hz / rate)
    for name in GUEST_CALLS:
        yield _Figure(f"guest, {name}", "guest", name, "instr", lambda us: us * hz / 1e6)


def rows(found: dict[str, list[dict[str, float]]], hz: float) -> list[Row]:
    """Of what was counted: this tree's figures, and their ratios to another tree's, QEMU's Xen emulation and plain KVM."""
    made = []
    for figure in _figures(hz):

        def samples(who: str, figure: _Figure = figure) -> list[float]:
            taken = found.get(f"{who}: {figure.task}", [])
            return [figure.each(one[figure.key]) for one in taken if figure.key in one]

        ours = samples(HERE)
        if not ours:
            continue
        made.append(Row(figure.name, ours, figure.unit, LIMITS.get(figure.name)))
        for who, what in ((BEFORE, "the other commit"), ("QEMU", "QEMU's Xen emulation"), ("KVM", "plain KVM")):
            theirs = samples(who)
            if theirs:
                name = f"{figure.name}, to {what}"
                made.append(
                    Row(name, [one / other for one, other in zip(ours, theirs, strict=False)], "times", LIMITS.get(name))
                )
    return made
