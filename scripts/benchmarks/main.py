"""The command behind `scripts/bench`."""

import argparse

from scripts.benchmarks import block, boot, events, hypercall, idle, net, startup, trace
from scripts.benchmarks.table import print_table

SUBJECTS = {
    "hypercall": hypercall,
    "startup": startup,
    "events": events,
    "idle": idle,
    "trace": trace,
    "boot": boot,
    "block": block,
    "net": net,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure pyvmm; medians of some runs.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: what runs on any KVM)"
    )
    parser.add_argument("--runs", type=int, default=9, help="samples of each quantity (default 9)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SUBJECTS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    for name in options.names or ("hypercall", "startup", "events", "idle"):
        subject = SUBJECTS[name]
        print_table(f"{name}: {(subject.__doc__ or '').partition(chr(10))[0]}", subject.measure(options.runs))


main()
