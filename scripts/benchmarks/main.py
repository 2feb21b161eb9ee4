"""The command behind `scripts/bench`."""

import argparse
from pathlib import Path

from scripts.benchmarks import (
    block,
    boot,
    calls,
    dom0,
    events,
    guest,
    hypercall,
    idle,
    net,
    scale,
    startup,
    trace,
)
from scripts.benchmarks.report import as_html, as_json, conditions
from scripts.benchmarks.table import Row, print_table
from vmm.doctor import cpu_flags
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure pyvmm; medians of some runs.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: all that this host can run)"
    )
    parser.add_argument("--runs", type=int, help="samples of each quantity (default 5)")
    parser.add_argument("--quick", action="store_true", help="one sample, and only what boots no Linux unless named")
    parser.add_argument("--json", metavar="FILE", type=Path, help="all samples")
    parser.add_argument("--html", metavar="FILE", type=Path, help="a page of plots")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SUBJECTS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    runs, made_on = options.runs or (1 if options.quick else 5), conditions()
    found: dict[str, list[Row]] = {}
    for name in options.names or _possible(quick=options.quick):
        subject = SUBJECTS[name]
        found[name] = subject.measure(runs)
        print_table(f"{name}: {(subject.__doc__ or '').partition(chr(10))[0]}", found[name])
        for path, form in ((options.json, as_json), (options.html, as_html)):
            if path is not None:
                path.write_text(form(found, made_on), encoding="utf-8")  # after each, so that a late failure loses nothing


def _possible(*, quick: bool) -> list[str]:
    """What this host can run; says what it cannot."""
    if quick:
        return list(ANYWHERE)
    system = System()
    xen = XenFlag.EVTCHN_SEND in system.xen_flags()
    system.close()
    if xen and {"vmx", "svm"} & cpu_flags():
        return list(SUBJECTS)
    print(
        f"left out: {', '.join(BESIDE_QEMU)}: QEMU's Xen emulation needs VT-x or AMD-V and a KVM with KVM_XEN "
        "(`ci/nested --kernel 6.12 -- scripts/bench`)"
    )
    return list(ANYWHERE)


main()
