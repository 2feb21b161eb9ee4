"""The observers of one run: the trace, the statistics, the timeline and the faults that its command line asks for."""

import sys
from pathlib import Path
from typing import NamedTuple

from vmm.errors import PyvmmError
from vmm.host import log
from vmm.host.chardev import Tee
from vmm.machine.domain import Domain
from vmm.observe.faults import Fault, Injector
from vmm.observe.trace.filters import Filter
from vmm.observe.trace.page import page
from vmm.observe.trace.stats import Stats
from vmm.observe.trace.symbols import load_symbols
from vmm.observe.trace.timeline import Timeline
from vmm.observe.trace.tracer import Consumer, Tracer
from vmm.observe.trace.writers import WRITERS, Output


class Observation(NamedTuple):
    """What somebody wants to see, or to go wrong."""

    trace: Filter | None = None
    trace_file: Path | None = None
    trace_format: str = "text"
    symbols: Path | None = None
    stats: bool = False
    timeline: Path | None = None
    faults: tuple[Fault, ...] = ()
    seed: int = 0


def check_writable(path: Path) -> None:
    """A file can be made there: better said before the run than after it.  PyvmmError."""
    try:
        path.open("a").close()
    except OSError as error:
        raise PyvmmError(f"--timeline {path}: {error.strerror}") from None


class Observers:
    """Look on at all domains of one run.  PyvmmError where a file cannot be read or written."""

    def __init__(self, wanted: Observation) -> None:
        self._stats = Stats() if wanted.stats else None
        self._devices: dict[str, dict[str, int]] = {}
        consumers: list[Consumer] = [self._stats] if self._stats is not None else []
        if wanted.trace is not None:
            symbols = load_symbols(wanted.symbols) if wanted.symbols is not None else None
            consumers.append(WRITERS[wanted.trace_format](Output(wanted.trace_file), wanted.trace, symbols))
        self._page = wanted.timeline
        self._timeline: Timeline | None = None
        if wanted.timeline is not None:
            check_writable(wanted.timeline)
            self._timeline = Timeline()
            consumers.append(self._timeline)
        self._tracer = Tracer(consumers)
        self._injector = Injector(list(wanted.faults), wanted.seed) if wanted.faults else None

    def attach(self, domain: Domain, console: Tee) -> None:
        """Look on at a domain, before it starts."""
        if self._injector is not None:
            self._injector.attach(domain)
        if self._tracer.consumers:
            self._tracer.attach(domain)
        if self._timeline is not None:
            self._timeline.mark("making the domain and loading the image")
            console.add(self._timeline)

    def _write_page(self) -> None:
        if self._page is None or self._timeline is None:
            return
        try:
            self._page.write_text(page("pyvmm run: timeline", self._timeline), encoding="utf-8")
        except OSError as error:
            log.get(__name__).warning("the timeline is lost", file=str(self._page), reason=error.strerror)

    def ended(self, domain: Domain) -> None:
        """The domain is about to stop: its devices' counters are still there."""
        if self._stats is not None and domain.devices is not None:
            self._devices |= domain.devices.counters()

    def close(self) -> None:
        """The run is over: print what has been counted."""
        seconds = self._tracer.elapsed_s
        self._tracer.close()
        self._write_page()
        if self._stats is not None:
            print("\n".join(self._stats.table(seconds, list(self._devices.items()))), file=sys.stderr)
