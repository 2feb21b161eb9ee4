"""A guest for back ends: some RAM, a grant table that it fills itself, and its end of a ring."""

import struct
import time
from collections.abc import Callable

from tests.unit.fakes import Bytes, Vcpu, channels
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.grants import TABLE_PAGES, GrantTable
from vmm.xenabi.values import Domid, Gfn, Gpa, XenError

READONLY = 4
DEADLINE_S = 10


def wait(happened: Callable[[], bool]) -> None:
    """Until another thread has made it so."""
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.0005)


class Ram:
    """Pages from gfn 0 on."""

    def __init__(self, pages: int) -> None:
        self.pages = [Bytes(PAGE_BYTES) for _ in range(pages)]

    def page(self, gfn: Gfn) -> memoryview:
        if gfn >= len(self.pages):
            raise XenError(22)
        return memoryview(self.pages[gfn].data)

    def shared(self, gpa: Gpa, size_bytes: int) -> Bytes:
        return self.pages[gpa // PAGE_BYTES]


class Guest:
    """The domain of a front end, as a test drives it."""

    def __init__(self, pages: int = 64) -> None:
        self.domid = Domid(1)
        self.memory = Ram(pages)
        self.table = Bytes(TABLE_PAGES * PAGE_BYTES)
        self.grants = GrantTable(0, self.table)
        self.vcpu = Vcpu()
        self.events = channels([self.vcpu])
        self.events.attach(Bytes(), Abi.X86_64)
        self._next_ref = 8

    def grant(self, gfn: int, *, readonly: bool = False, to: int = 0) -> int:
        """A grant reference for a page."""
        ref, self._next_ref = self._next_ref, self._next_ref + 1
        self.table.write(ref * 8, struct.pack("<HHI", 1 | (READONLY if readonly else 0), to, gfn))
        return ref

    def flags(self, ref: int) -> int:
        """GTF_* of a version 1 entry."""
        return int(struct.unpack("<H", self.table.read(ref * 8, 2))[0])

    def in_use(self) -> list[int]:
        """The references that somebody reads or writes."""
        return [ref for ref in range(8, self._next_ref) if self.flags(ref) & 0x18]


class Ring:
    """The front end's side of a ring in one page, as the macros in io/ring.h do it."""

    def __init__(self, page: memoryview, entry_bytes: int) -> None:
        self.page = page
        self.indices = page[:16].cast("I")  # req_prod, req_event, rsp_prod, rsp_event
        self.entry_bytes = entry_bytes
        self.entries = 1 << (((PAGE_BYTES - 64) // entry_bytes).bit_length() - 1)
        self.indices[1] = self.indices[3] = 1
        self.consumed = 0

    def put(self, request: bytes) -> None:
        at = 64 + self.indices[0] % self.entries * self.entry_bytes
        self.page[at : at + len(request)] = request
        self.indices[0] = (self.indices[0] + 1) & 0xFFFF_FFFF

    def responses(self, size_bytes: int) -> list[bytes]:
        found = []
        while self.consumed != self.indices[2]:
            at = 64 + self.consumed % self.entries * self.entry_bytes
            found.append(bytes(self.page[at : at + size_bytes]))
            self.consumed += 1
        self.indices[3] = self.consumed + 1
        return found
