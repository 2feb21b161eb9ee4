"""What the C loops of one domain's vCPUs know of its event channels, so that they need no Python for them.

Numbers of ports, vCPUs and priorities come from the caller, checked; addresses are the host's and stay valid as long as the
domain does.  From any thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmm.kvm._native import ffi, lib


class EventTable:
    """The C side's account of ports and vCPUs, and the queues of the FIFO ABI, which C and Python fill together."""

    def __init__(self, vcpus: int) -> None:
        self.pointer: Any = ffi.new("struct pyvmm_events *", {"vcpus": vcpus})
        self._lock = ffi.addressof(self.pointer, "lock")
        self._vcpus = vcpus
        self._word_pages = len(self.pointer.words)
        for index in range(vcpus):
            self.pointer.vcpus[index].upcall_fd = -1

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        lib.pthread_mutex_lock(self._lock)
        try:
            yield self.pointer
        finally:
            lib.pthread_mutex_unlock(self._lock)

    def forget_abi(self) -> None:
        """The guest has neither ABI: nothing is shown to it, the FIFO queues are empty."""
        with self._locked() as table:
            table.shared = 0
            table.words = [0] * self._word_pages
            for vcpu in table.vcpus[0 : self._vcpus]:
                vcpu.block = 0
                vcpu.tails = [0] * len(vcpu.tails)

    def use_two_levels(self, shared_info: int) -> None:
        """The guest is a 64-bit one with the 2-level ABI, and its shared info is here."""
        with self._locked() as table:
            table.shared = shared_info

    def add_words(self, page: int, address: int) -> None:
        """FIFO: a page of event words; pages beyond the last port are not looked at."""
        if page < self._word_pages:
            with self._locked() as table:
                table.words[page] = address

    def add_block(self, vcpu: int, address: int) -> None:
        """FIFO: a vCPU's control block."""
        with self._locked() as table:
            table.vcpus[vcpu].block = address

    def place_info(self, vcpu: int, address: int) -> None:
        """A vCPU's vcpu_info."""
        with self._locked() as table:
            table.vcpus[vcpu].info = address

    def interrupt_by(self, vcpu: int, upcall_fd: int) -> None:
        """An eventfd is all it takes to interrupt a vCPU."""
        with self._locked() as table:
            table.vcpus[vcpu].upcall_fd = upcall_fd

    def raise_(self, port: int, vcpu: int, priority: int) -> bool:
        """FIFO, to a port with a word: make an event pending and queue it; whether its vCPU is to be told."""
        return bool(lib.pyvmm_queue(self.pointer, port, vcpu, priority, 1))

    def queue(self, port: int, vcpu: int, priority: int) -> bool:
        """FIFO: queue an event that is pending already; whether its vCPU is to be told."""
        return bool(lib.pyvmm_queue(self.pointer, port, vcpu, priority, 0))

    def rings(self, port: int, fd: int) -> None:
        """Who sends to a port signals an eventfd."""
        self._set(port, lib.PORT_RINGS, fd=fd)

    def interrupts(self, port: int, vcpu: int, priority: int) -> None:
        """Who sends to a port interrupts a vCPU by it."""
        self._set(port, lib.PORT_IPI, vcpu=vcpu, priority=priority)

    def times(self, port: int, vcpu: int, priority: int) -> None:
        """A port is a vCPU's timer."""
        self._set(port, lib.PORT_TIMER, vcpu=vcpu, priority=priority)

    def forget(self, port: int) -> None:
        """A port is Python's again."""
        self._set(port, lib.PORT_OF_PYTHON)

    def _set(self, port: int, does: int, *, fd: int = -1, vcpu: int = 0, priority: int = 0) -> None:
        with self._locked() as table:
            entry = table.ports[port]
            entry.does, entry.fd, entry.vcpu, entry.priority = does, fd, vcpu, priority

    def queues(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]:
        """The FIFO queues' ends: the last port of each, by vCPU and priority, and by port the queue that it was last in."""
        with self._locked() as table:
            tails = tuple(tuple(map(int, vcpu.tails)) for vcpu in table.vcpus[0 : self._vcpus])
            places = tuple((port, int(row.queue)) for port, row in enumerate(table.ports) if row.queue)
        return tails, places

    def restore_queues(self, record: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]) -> None:
        """Go on with these."""
        with self._locked() as table:
            for vcpu, tails in zip(table.vcpus[0 : self._vcpus], record[0], strict=False):
                vcpu.tails = list(tails)
            for port, queue in record[1]:
                table.ports[port].queue = queue

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Meanwhile all that interrupts is Python's: a vCPU waits there."""
        with self._locked() as table:
            table.waiting += 1
        try:
            yield
        finally:
            with self._locked() as table:
                table.waiting -= 1
