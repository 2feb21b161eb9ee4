"""Records on their way to a file: text that reads like strace's, JSON lines, and Perfetto's (Chrome's) trace events.

Writing may fail half-way, on a full disk say: the trace ends there, the log says so once, and the guest goes on.
"""

import contextlib
import errno as errors
import json
import os
import sys
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from vmm.errors import PyvmmError
from vmm.host import log
from vmm.observe.trace.filters import Filter
from vmm.observe.trace.records import Event, Exit, Hypercall, Record, StoreMessage, as_dict, details, text_of
from vmm.observe.trace.symbols import Symbols

FLUSH_S = 0.5
_DEVICE_TRACK, _STORE_TRACK = 1000, 999


class Output:
    """The file.  Any thread writes; `_lock` keeps lines whole.  What is buffered goes out twice a second."""

    def __init__(self, path: Path | None) -> None:
        """Standard error where there is no path.  PyvmmError."""
        self._lock = threading.Lock()
        self._path = path
        self._ended = threading.Event()
        try:
            self._file: IO[str] = sys.stderr if path is None else path.open("w", encoding="utf-8", buffering=1 << 16)
        except OSError as error:
            raise PyvmmError(f"--trace-file {path}: {error.strerror}") from None
        self._failed = False
        self._flusher = threading.Thread(target=self._flush_now_and_then, name="trace", daemon=True)
        if path is not None:
            self._flusher.start()

    def write(self, text: str) -> None:
        """One record's text."""
        with self._lock:
            if not self._failed:
                try:
                    self._file.write(text)
                except (OSError, ValueError) as error:
                    self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        reason = os.strerror(error.errno or errors.EIO) if isinstance(error, OSError) else str(error)
        log.get(__name__).warning("the trace ends here", file=str(self._path or "stderr"), reason=reason)

    def _flush_now_and_then(self) -> None:
        while not self._ended.wait(FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            if not self._failed:
                try:
                    self._file.flush()
                except OSError as error:
                    self._give_up(error)

    def close(self) -> None:
        """What is left goes out; the file is closed."""
        self._ended.set()
        if self._flusher.ident is not None:
            self._flusher.join()
        self._flush()
        if self._path is not None:
            with contextlib.suppress(OSError):  # the log has said so
                self._file.close()


class Writer(ABC):
    """What all formats have in common."""

    def __init__(self, output: Output, wanted: Filter, symbols: Symbols | None) -> None:
        self._output = output
        self._wanted = wanted
        self._symbols = symbols

    def take(self, record: Record) -> None:
        """Write it, if it is wanted."""
        if self._wanted.matches(record):
            self._output.write(self._text(record))

    @abstractmethod
    def _text(self, record: Record) -> str:
        """What the file gets for it."""

    def close(self) -> None:
        """No more will come."""
        self._output.close()


class TextWriter(Writer):
    """A line a record."""

    def _text(self, record: Record) -> str:
        return line(record, self._symbols) + "\n"


def line(record: Record, symbols: Symbols | None = None) -> str:
    """A record as strace would write it."""
    who = f"d{record.domid}" if isinstance(record, StoreMessage) else f"d{record.domid}v{record.vcpu}"
    return f"{record.time_ns / 1e9:11.6f} {who:<5} {_body(record, symbols)}"


def _body(record: Record, symbols: Symbols | None) -> str:
    if isinstance(record, Hypercall):
        entries = ", ".join([f"{name}={text}" if name else text for name, text in record.fields])
        where = (symbols.name(record.rip) if symbols else None) or f"{record.rip:#x}"
        return f"{record.name}({entries}) = {_result(record)} <{record.duration_ns / 1e9:.6f}> [{where}]"
    if isinstance(record, Event):
        how = "dropped" if record.dropped else "upcall" if record.told else "pending, no upcall"
        return f"event port {record.port} ({record.source}): {how}"
    if isinstance(record, StoreMessage):
        within = f" in transaction {record.request.transaction_id}" if record.request.transaction_id else ""
        return f"{record.name}({text_of(record.request.payload)}) = {text_of(record.answer.payload)}{within}"
    return f"exit {record.reason} {record.detail} <{record.duration_ns / 1e9:.6f}>"


def _result(record: Hypercall) -> str:
    if record.result is None:
        return "? (goes on)"
    if record.error is None:
        return str(record.result) if -4096 < record.result < 4096 else hex(record.result)
    return f"{record.result} {record.error} ({os.strerror(-record.result)})"


class JsonWriter(Writer):
    """An object a line."""

    def _text(self, record: Record) -> str:
        return as_json(record, self._symbols)


def as_json(record: Record, symbols: Symbols | None = None) -> str:
    """A record as a line of JSON."""
    return json.dumps(as_dict(record, symbols)) + "\n"


class PerfettoWriter(Writer):
    """Chrome's JSON trace events, which ui.perfetto.dev opens: a process a domain, a track a vCPU and a device.

    Source: "Trace Event Format", and perfetto.dev/docs/getting-started/other-formats.
    """

    def __init__(self, output: Output, wanted: Filter, symbols: Symbols | None) -> None:
        super().__init__(output, wanted, symbols)
        self._tracks: dict[tuple[int, str], int] = {}
        self._lock = threading.Lock()
        self._output.write("[\n" + json.dumps({"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "pyvmm"}}))

    def _text(self, record: Record) -> str:
        shape = '"ph":"i","s":"t"'
        if isinstance(record, Hypercall | Exit):
            shape = f'"ph":"X","dur":{record.duration_ns / 1e3}'
        return (
            f',\n{{"name":"{record.name}","cat":"{record.kind}","pid":{record.domid},"tid":{self._track(record)},'
            f'"ts":{record.time_ns / 1e3},{shape},"args":{json.dumps(details(record, self._symbols))}}}'
        )

    def _track(self, record: Record) -> int:
        if isinstance(record, StoreMessage):
            name, number = "xenstore", _STORE_TRACK
        elif isinstance(record, Event) and record.source == "interdomain":
            name, number = f"port {record.port} (device)", _DEVICE_TRACK + record.port
        else:
            name, number = f"vCPU {record.vcpu}", record.vcpu
        with self._lock:
            if (record.domid, name) not in self._tracks:
                self._tracks[record.domid, name] = number
                for kind, text in (("process_name", f"domain {record.domid}"), ("thread_name", name)):
                    entry = {"name": kind, "ph": "M", "pid": record.domid, "tid": number, "args": {"name": text}}
                    self._output.write(",\n" + json.dumps(entry))
        return number

    def close(self) -> None:
        """The array ends."""
        self._output.write("\n]\n")
        super().close()


WRITERS: dict[str, type[TextWriter | JsonWriter | PerfettoWriter]] = {
    "text": TextWriter,
    "jsonl": JsonWriter,
    "perfetto": PerfettoWriter,
}
