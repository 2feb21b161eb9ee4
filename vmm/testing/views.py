"""Parts of a running guest: its memory, vCPUs, xenstore, and what it has called."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from vmm.errors import GuestError
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.machine.memory.regions import MemoryFault
from vmm.machine.vcpu import Vcpu
from vmm.observe.trace.filters import parse_filter
from vmm.observe.trace.records import Hypercall, Record
from vmm.observe.trace.symbols import Symbols
from vmm.xenabi.values import Domid, XenError
from vmm.xenabi.vcpu_context import GENERAL
from vmm.xenstore.server import Connection, Store
from vmm.xenstore.tree import StoreError
from vmm.xenstore.wire import Kind, Message, Reader

MAX_RECORDS = 1_000_000
REGISTERS = ("rip", "rflags", *(f"r{name}" for name in GENERAL), *(f"r{n}" for n in range(8, 16)))
CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


class Records:
    """What has happened, oldest first, as it happens.  Iterate, index, or `filter`; from any thread."""

    def __init__(self) -> None:
        self._all: deque[Record] = deque(maxlen=MAX_RECORDS)

    def take(self, record: Record) -> None:
        """The tracer's consumer."""
        self._all.append(record)

    def close(self) -> None:
        """Nothing to let go."""

    def snapshot(self) -> list[Record]:
        """All so far."""
        while True:
            try:
                return list(self._all)
            except RuntimeError:  # it grew meanwhile
                continue

    def filter(self, text: str) -> list[Record]:
        """Those that a filter as for `pyvmm run --trace` takes: `sched_op`, `failed`, `vcpu=1`...  UsageError."""
        wanted = parse_filter(text)
        return [record for record in self.snapshot() if wanted.matches(record)]


class Hypercalls:
    """The hypercalls among the records."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def _found(self) -> list[Hypercall]:
        return [record for record in self._records.snapshot() if isinstance(record, Hypercall)]

    def __iter__(self) -> Iterator[Hypercall]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def __getitem__(self, index: int) -> Hypercall:
        return self._found()[index]

    def filter(self, text: str) -> list[Hypercall]:
        """Those that a filter takes."""
        return [record for record in self._records.filter(text) if isinstance(record, Hypercall)]

    def wait_for(self, text: str, timeout: float = 30, *, count: int = 1) -> list[Hypercall]:
        """Those that a filter takes, once there are so many.  GuestError."""
        deadline = time.monotonic() + timeout
        while len(found := self.filter(text)) < count:
            if time.monotonic() > deadline:
                raise GuestError(f"{len(found)} of {count} hypercalls {text!r} came in {timeout:g} s")
            time.sleep(0.02)
        return found


class GuestRam:
    """The guest's memory, by guest-physical address, or by virtual address as a vCPU sees it just now."""

    def __init__(self, domain: Callable[[], Domain], symbols: Symbols | None) -> None:
        self._domain = domain
        self._symbols = symbols

    def read(self, gpa: int, size: int) -> bytes:
        """Guest-physical bytes.  GuestError where there is no memory."""
        try:
            return self._domain().memory.read(gpa, size)
        except MemoryFault as error:
            raise GuestError(str(error)) from None

    def write(self, gpa: int, data: bytes) -> None:
        """To guest-physical memory.  GuestError."""
        try:
            self._domain().memory.write(gpa, data)
        except MemoryFault as error:
            raise GuestError(str(error)) from None

    def address(self, place: int | str) -> int:
        """A symbol's address, or the address itself.  GuestError."""
        if isinstance(place, int):
            return place
        if self._symbols is None:
            raise GuestError(f"the address of {place!r} is not known: give the Guest symbols=, a vmlinux or a System.map")
        if place not in self._symbols.addresses:
            raise GuestError(f"the symbols have no {place!r}")
        return self._symbols.addresses[place]

    def read_virtual(self, place: int | str, size: int, vcpu: int = 0) -> bytes:
        """Bytes at a virtual address or symbol.  GuestError where nothing is mapped."""
        address, target = self.address(place), self._domain().vcpus[vcpu]
        return _answer(target, lambda: target.read_virtual(address, size), address)

    def write_virtual(self, place: int | str, data: bytes, vcpu: int = 0) -> None:
        """To a virtual address or symbol.  GuestError."""
        address, target = self.address(place), self._domain().vcpus[vcpu]

        def write() -> bytes:
            target.write_virtual(address, data)
            return b""

        _answer(target, write, address)


def _answer(vcpu: Vcpu, question: Callable[[], bytes], address: int) -> bytes:
    try:
        answer = vcpu.ask(question)
    except XenError:
        raise GuestError(f"nothing is mapped at {address:#x} for vCPU {vcpu.id}") from None
    if answer is None:
        raise GuestError("the guest does not run any more")
    return answer


class GuestVcpu:
    """One vCPU."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    @property
    def regs(self) -> dict[str, int]:
        """General and control registers by name, between two instructions.  GuestError once the guest has ended."""

        def read() -> dict[str, int]:
            general, special = self._vcpu.kvm.regs, self._vcpu.kvm.sregs
            found = {name: int(getattr(general, name)) for name in REGISTERS}
            return found | {name: int(getattr(special, name)) for name in CONTROL}

        found = self._vcpu.ask(read)
        if found is None:
            raise GuestError("the guest does not run any more")
        return found

    def set_regs(self, **values: int) -> None:
        """Change general registers, by name."""

        def write() -> bool:
            for name, value in values.items():
                if name not in REGISTERS:
                    raise GuestError(f"{name} is not a general register")
                setattr(self._vcpu.kvm.regs, name, value)
            self._vcpu.kvm.regs_changed()
            return True

        self._vcpu.ask(write)

    @property
    def online(self) -> bool:
        """Whether the guest uses it."""
        return self._vcpu.online

    def inject_nmi(self) -> None:
        """Interrupt it as a watchdog would."""
        self._vcpu.ask(lambda: self._vcpu.inject_nmi())


class GuestXenstore:
    """The guest's xenstore as a toolstack uses it; paths that do not begin with / are below the guest's home."""

    def __init__(self, hypervisor: Hypervisor, domain: Callable[[], Domain]) -> None:
        self._xenstore = hypervisor.xenstore
        self._domain = domain

    def path(self, path: str) -> str:
        """Made absolute."""
        return path if path.startswith("/") else f"/local/domain/{self._domain().domid}/{path}".rstrip("/")

    def read(self, path: str) -> str | None:
        """A node's value, None where there is no such node."""
        found = self._xenstore.run(lambda store: store.read(self.path(path)))
        return None if found is None else found.decode("utf-8", "backslashreplace")

    def write(self, path: str, value: str) -> None:
        """Set a node.  GuestError."""
        try:
            self._xenstore.run(lambda store: store.write(self.path(path), value))
        except StoreError as error:
            raise GuestError(f"cannot write {self.path(path)}: {error}") from None

    def remove(self, path: str) -> None:
        """Remove a node and all below it."""
        self._xenstore.run(lambda store: store.remove(self.path(path)))

    def ls(self, path: str = "") -> list[str]:
        """The names of a node's children; none where there is no such node."""

        def children(store: Store) -> list[str]:
            node = store.tree.nodes.get(self.path(path))
            return sorted(node.children) if node is not None else []

        return self._xenstore.run(children)

    def watch(self, path: str = "") -> "GuestWatch":
        """Be told of changes at a node and below; a context manager."""
        return GuestWatch(self, self.path(path))

    def wait_for(self, path: str, value: str, timeout: float = 30) -> None:
        """Until a node has this value.  GuestError."""
        with self.watch(path) as watch:
            deadline = time.monotonic() + timeout
            while (found := self.read(path)) != value:
                if watch.event(max(deadline - time.monotonic(), 0)) is None:
                    raise GuestError(f"{self.path(path)} is {found!r}, not {value!r}, after {timeout:g} s")

    def connect(self, on_outgoing: Callable[[], None]) -> Connection:
        """A client of the store's, as dom0; its methods belong to xenstore's thread."""
        return self._xenstore.run(lambda store: store.connect(Domid(0), on_outgoing))

    def run(self, action: Callable[[Store], Any]) -> Any:
        """Do something in xenstore's thread."""
        return self._xenstore.run(action)


class GuestWatch:
    """Changes at a node and below.  `_more` guards those that were not taken yet."""

    def __init__(self, store: GuestXenstore, path: str) -> None:
        self._store = store
        self._path = path
        self._more = threading.Condition()
        self._events: deque[str] = deque()
        self._reader = Reader()
        self._connection: Connection | None = None

    def __enter__(self) -> "GuestWatch":
        self._connection = self._store.connect(self._take)
        request = Message(Kind.WATCH, 1, 0, f"{self._path}\0watch\0".encode())
        connection = self._connection
        self._store.run(lambda _: connection.handle(request))
        return self

    def __exit__(self, *_: object) -> None:
        connection = self._connection
        if connection is not None:
            self._store.run(lambda store: store.disconnect(connection))

    def _take(self) -> None:
        assert self._connection is not None
        while data := self._connection.take():
            for message in self._reader.feed(data):
                if message.kind == Kind.WATCH_EVENT:
                    with self._more:
                        self._events.append(message.payload.split(b"\0")[0].decode())
                        self._more.notify_all()

    def event(self, timeout: float = 30) -> str | None:
        """The path of the next change; None where none comes in time.  The first event is of the watch itself."""
        with self._more:
            self._more.wait_for(lambda: self._events, timeout)
            return self._events.popleft() if self._events else None
