"""The command behind `scripts/bench`."""

import argparse
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

from scripts.benchmarks import (
    block,
    boot,
    calls,
    dom0,
    events,
    exact,
    guest,
    hypercall,
    idle,
    net,
    scale,
    startup,
    trace,
)
from scripts.benchmarks.monitors import ROOT
from scripts.benchmarks.report import as_html, as_json, conditions, from_json
from scripts.benchmarks.table import Row, print_table
from vmm.host.cpuinfo import cpu_flags
from vmm.kvm import System, XenFlag

ANYWHERE = {
    "startup": startup,
    "hypercall": hypercall,
    "calls": calls,
    "events": events,
    "idle": idle,
    "trace": trace,
    "scale": scale,
    "dom0": dom0,
}
"""What runs on any KVM, with guests of a few instructions."""

BESIDE_QEMU = {"boot": boot, "guest": guest, "block": block, "net": net}
"""What boots Linux, and QEMU's Xen emulation beside pyvmm."""

SUBJECTS = ANYWHERE | BESIDE_QEMU
IN_L1 = {"6.12": (*BESIDE_QEMU, "dom0", "calls"), "6.1": ("calls",)}
"""What runs in which L1 where this host has no VT-x or AMD-V.  6.1 has no KVM_XEN, which QEMU's Xen emulation needs."""

EXACT = "exact"
"""Boots an L1 of its own, in Bochs, wherever it is called; only when it is named."""

RUNS, RUNS_IN_L1, L1_TIMEOUT_S = 5, 3, 3600


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure pyvmm; medians of some runs.  What boots Linux runs in an L1 where this host cannot.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: all), or {EXACT}")
    parser.add_argument("--runs", type=int, help=f"samples of each quantity (default {RUNS}, in an L1 {RUNS_IN_L1})")
    parser.add_argument("--against", metavar="COMMIT", help=f"with {EXACT}: the same of another commit, and the ratios")
    parser.add_argument("--quick", action="store_true", help="one sample, and only what boots no Linux unless named")
    parser.add_argument("--json", metavar="FILE", type=Path, help="all samples")
    parser.add_argument("--html", metavar="FILE", type=Path, help="a page of plots")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SUBJECTS and name != EXACT]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join([*SUBJECTS, EXACT])}")
    if options.against is not None and options.names != [EXACT]:
        parser.error(f"--against is for {EXACT} alone: other figures depend on when they are taken")
    names, made_on = options.names or list(ANYWHERE if options.quick else SUBJECTS), conditions()
    runs = options.runs or (1 if options.quick else None)
    found: dict[str, list[Row]] = {}

    def keep(rows: dict[str, list[Row]]) -> None:
        found.update(rows)
        for path, form in ((options.json, as_json), (options.html, as_html)):
            if path is not None:
                path.write_text(form(found, made_on), encoding="utf-8")  # after each, so that a late failure loses nothing

    if EXACT in names:
        rows = exact.measure(runs or exact.RUNS, options.against)
        print_table(f"{EXACT}: {(exact.__doc__ or '').partition(chr(10))[0]}", rows)
        keep({EXACT: rows})
        names.remove(EXACT)
        if not names:
            return
    here = _possible()
    for name in names:
        if name in here:
            subject = SUBJECTS[name]
            rows = subject.measure(runs or RUNS)
            print_table(f"{name}: {(subject.__doc__ or '').partition(chr(10))[0]}", rows)
            keep({name: rows})
    if not options.quick and "boot" not in here and not cpu_flags() & {"vmx", "svm"}:
        for kernel, subjects in IN_L1.items():
            wanted = [name for name in subjects if name in names]
            if wanted:
                print(f"\nin an L1 with Linux {kernel}:", flush=True)
                keep(_in_l1(kernel, wanted, runs or RUNS_IN_L1))
    elif left := [name for name in names if name not in here]:
        print(f"left out: {', '.join(left)}: QEMU's Xen emulation needs a KVM with KVM_XEN, which this host has not")


def _possible() -> dict[str, ModuleType]:
    """What this host can run itself."""
    system = System()
    xen = XenFlag.EVTCHN_SEND in system.xen_flags()
    system.close()
    return SUBJECTS if xen and {"vmx", "svm"} & cpu_flags() else ANYWHERE


def _in_l1(kernel: str, names: list[str], runs: int) -> dict[str, list[Row]]:
    """The same there: rows by subject."""
    for fetch in (["scripts/kernel", "--vmlinux", "6.1", "6.1-generic"], ["scripts/rootfs", "dom0"]):  # L1 cannot
        subprocess.run([ROOT / fetch[0], *fetch[1:]], stdout=subprocess.DEVNULL, check=True)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command: list[str | Path] = [ROOT / "ci/nested", "--kernel", kernel, "--out", folder]
        command += ["--timeout", str(L1_TIMEOUT_S), "--"]
        command += [ROOT / "scripts/bench", "--runs", str(runs), "--json", results, *names]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            raise SystemExit(f"scripts/bench: the L1 with Linux {kernel} did not come to its end")
        return {f"{name}, in an L1 with Linux {kernel}": rows for name, rows in from_json(results.read_text()).items()}


main()
