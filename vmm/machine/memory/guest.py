"""Guest-physical memory: regions that know their backing, checked access, and pages that come and go.

Writers of the region list (the domain's creation, hypercalls that place pages) hold `_lock`; readers take the list as it
is, which is never changed in place.  A region, once there, stays until the domain ends, so no access can fault.
"""

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from vmm.errors import PyvmmError
from vmm.kvm import PAGE_BYTES, HostMemory, KvmError, PageFile, SlotFlag, VmFd
from vmm.machine.memory.regions import MemoryFault, Region, RegionTable, SharedBytes
from vmm.xenabi.constants import E820
from vmm.xenabi.values import Domid, Gfn, Gpa, MemmapEntry, XenError

if TYPE_CHECKING:
    from vmm.machine.records import MemoryRecord

Result = TypeVar("Result")
LOW_RAM_END = 0xF000_0000
"""Where RAM below 4 GiB ends at the latest (Xen: HVM_BELOW_4G_MMIO_START)."""

HIGH_RAM_START = 4 << 30
BIOS_AREA = (0xA0000, 0x100000)
WINDOW_BYTES = 2 << 20
MAX_WINDOWS = 512
SLACK_PAGES = 256
"""What xl lets a domain have beyond what it is given (LIBXL_MAXMEM_CONSTANT, 1 MiB)."""
NOBODY = Domid(0)
ADDRESS_LIMIT = 1 << 40
LAPIC_START = 0xFEE0_0000


_SHARING = threading.RLock()
"""Guards who shows whose pages, in all domains; taken before a domain's own lock."""


class Beside(NamedTuple):
    """What a toolstack gives a domain beside its memory, pages."""

    special_pages: int
    """That it has."""
    slack_pages: int
    """That it may have."""


NOTHING_BESIDE = Beside(0, 0)


class GuestMemory:
    """One domain's guest-physical address space, shown to KVM as memory slots; empty until somebody puts RAM into it.

    `limit_bytes`: the RAM that it may have; `beside`: what a toolstack adds to it.
    `shareable`: other domains may map its pages, which then live in files.
    """

    def __init__(
        self,
        vm: VmFd,
        xen_pages: int,
        *,
        owner: Domid = NOBODY,
        limit_bytes: int = 0,
        low_end: int = LOW_RAM_END,
        shareable: bool = False,
        beside: Beside = NOTHING_BESIDE,
    ) -> None:
        self.owner = owner
        self._vm = vm
        self._lock = threading.Lock()
        self._regions = RegionTable()
        self._map: list[MemmapEntry] = []
        self._windows = 0
        self._limit_bytes = limit_bytes
        self._beside = beside
        self._pages = 0
        self._maximum_gfn = Gfn(0)
        self._low_end = low_end
        self._holes: list[tuple[int, int]] = [(LAPIC_START, LAPIC_START + PAGE_BYTES)]
        # Xen's own pages: the hypervisor sees them here, the guest where it asks for them.
        self._xen_file = PageFile("pyvmm-xen-pages", xen_pages)
        self.xen_pages = HostMemory(xen_pages * PAGE_BYTES, file=self._xen_file)
        self._placed: dict[int, Gfn] = {}
        self._shareable = shareable
        self._closed = False
        self._foreign: dict[Gfn, tuple[GuestMemory, Gfn]] = {}
        """What other domains' pages are shown here, under `_SHARING`."""
        self._lent: dict[Gfn, set[tuple[GuestMemory, Gfn]]] = {}
        """Where pages of this domain are shown, likewise."""

    # ------------------------------------------------------------------------------------ building

    def _add(self, start: int, host: HostMemory) -> Region:
        region = Region(start, host, self._regions.next_slot)
        self._vm.set_memory(region.slot, start, host.size_bytes, host.address, SlotFlag.NONE)
        self._regions.add(region)
        return region

    def _memory(self, size_bytes: int, *, huge_pages: bool = False) -> HostMemory:
        file = PageFile("pyvmm-guest", size_bytes // PAGE_BYTES) if self._shareable else None
        return HostMemory(size_bytes, huge_pages=huge_pages, file=file)

    def _ram_stretches(self) -> list[tuple[int, int]]:
        """Where RAM may be, start and end: from 0 up, split around the hole from `low_end` to 4 GiB."""
        low = min(self._limit_bytes, self._low_end)
        high = self._limit_bytes - low
        return [(0, low), *([(HIGH_RAM_START, HIGH_RAM_START + high)] if high else [])]

    def add_ram(self) -> None:
        """All RAM that it may have, at once.  PyvmmError where the host cannot reserve it."""
        stretches = self._ram_stretches()
        try:
            for start, end in stretches:
                self._add(start, self._memory(end - start, huge_pages=True))
        except KvmError as error:
            raise PyvmmError(f"this host cannot reserve {self._limit_bytes >> 20} MiB for the guest: {error}") from None
        self._pages = self._limit_bytes // PAGE_BYTES + self._beside.special_pages
        self._maximum_gfn = Gfn(stretches[-1][1] // PAGE_BYTES - 1)
        low_end = stretches[0][1]
        self._map += [
            MemmapEntry(Gpa(0), BIOS_AREA[0], E820.RAM),
            MemmapEntry(Gpa(BIOS_AREA[0]), BIOS_AREA[1] - BIOS_AREA[0], E820.RESERVED),
            MemmapEntry(Gpa(BIOS_AREA[1]), low_end - BIOS_AREA[1], E820.RAM),
            *(MemmapEntry(Gpa(start), end - start, E820.RAM) for start, end in stretches[1:]),
        ]

    def set_map(self, entries: list[MemmapEntry]) -> None:
        """The memory map that the guest is told, instead of what it has been made of."""
        self._map = list(entries)

    def add_special(self, gpa: int, size_bytes: int, kind: E820, used_bytes: int | None = None) -> None:
        """Memory that is not RAM to the guest (tables, special pages); the map shows `used_bytes` of it."""
        self._add(gpa, self._memory(-(-size_bytes // PAGE_BYTES) * PAGE_BYTES))
        self._map.append(MemmapEntry(Gpa(gpa), used_bytes or size_bytes, kind))

    def reserve(self, start: int, size_bytes: int, *, shown: bool = True) -> None:
        """Keep addresses for devices: no memory will ever be there.  `shown`: also in the memory map."""
        self._holes.append((start, start + size_bytes))
        if shown:
            self._map.append(MemmapEntry(Gpa(start), size_bytes, E820.RESERVED))

    def release(self, gfn: Gfn) -> bool:
        """The guest gives a page of its RAM back to the host; False where it has none there."""
        with _SHARING, self._lock:
            region = self.find(gfn * PAGE_BYTES)
            if region is None or not region.has(gfn):
                return False
            if self._is_shown(gfn):
                self._take_away(gfn)
            else:
                self._revoke(gfn)
                region.host.discard(gfn * PAGE_BYTES - region.start, PAGE_BYTES)
                self._pages -= 1
                region.mark(gfn, there=False)
            return True

    def populate(self, gfn: Gfn) -> bool:
        """The guest gets a fresh page at `gfn`, within what it may have; False where that is not possible.

        One that is there already goes on to count, as on Xen: the guest has no way to reach it.
        """
        with _SHARING, self._lock:
            if self._pages >= self.maximum_pages:
                return False
            if gfn * PAGE_BYTES >= ADDRESS_LIMIT:
                self._pages += 1  # Xen has given it a page by then, and lost it
                return False
            region = self.find(gfn * PAGE_BYTES)
            if region is not None and region.has(gfn):
                self._vacate(gfn)
                self._blank(gfn)
            try:
                region = self._open_ram(gfn * PAGE_BYTES) or self._populated(gfn)
            except (XenError, KvmError):
                return False
            region.mark(gfn, there=True)
            self._pages += 1
            self._maximum_gfn = max(self._maximum_gfn, gfn)
            return True

    def _open_ram(self, gpa: int) -> Region | None:
        """The stretch of RAM that an address is in, without any page of it yet; None where it is in none."""
        for start, end in self._ram_stretches():
            if start <= gpa < end and self._regions.find(start) is None:
                region = self._add(start, self._memory(end - start, huge_pages=True))
                region.absent = bytearray(b"\1" * ((end - start) // PAGE_BYTES))
        return self.find(gpa)

    def map(self) -> list[MemmapEntry]:
        """The memory map that the guest is told, by address."""
        return sorted(self._map)

    @property
    def pages(self) -> int:
        """Pages of RAM that the guest has now, and its special ones."""
        return self._pages

    @property
    def maximum_pages(self) -> int:
        """Pages of RAM that it may have."""
        return self._limit_bytes // PAGE_BYTES + self._beside.slack_pages

    @property
    def maximum_gfn(self) -> Gfn:
        """The highest gfn that has held a page."""
        return self._maximum_gfn

    @property
    def low_ram_bytes(self) -> int:
        """RAM below 4 GiB, where images and modules go."""
        return min(self._limit_bytes, self._low_end)

    def ram(self) -> list[tuple[int, int, int]]:
        """The stretches of RAM that there are: start, end, and the host address of the start."""
        found = [(start, end, self.find(start)) for start, end in self._ram_stretches()]
        return [(start, end, region.host.address) for start, end, region in found if region is not None]

    # ------------------------------------------------------------------------------------- access

    def find(self, gpa: int) -> Region | None:
        """The region that holds an address."""
        return self._regions.find(gpa)

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """Writable bytes within one region; MemoryFault where they are not all there."""
        region = self.find(gpa)
        if region is None or size_bytes > region.end - gpa:
            raise MemoryFault(f"the guest has no memory at {gpa:#x}, {size_bytes} bytes")
        start = gpa - region.start
        if region.absent is not None and any(region.absent[start // PAGE_BYTES : -(-(start + size_bytes) // PAGE_BYTES)]):
            raise MemoryFault(f"the guest has given away memory at {gpa:#x}, {size_bytes} bytes")
        return region.host.view[start : start + size_bytes]

    def read(self, gpa: int, size_bytes: int) -> bytes:
        """A copy of guest-physical bytes; MemoryFault where there is no memory."""
        return bytes(self.view(gpa, size_bytes))

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """To guest-physical memory; MemoryFault where there is none."""
        self.view(gpa, len(data))[:] = data

    def take(self, gpa: int, other: HostMemory, start_bytes: int, size_bytes: int) -> None:
        """Bytes of the host's memory come here, and as far as they can be their pages (`HostMemory.take`).  MemoryFault."""
        self.view(gpa, size_bytes)
        region = self.find(gpa)
        assert region is not None
        region.host.take(gpa - region.start, other, start_bytes, size_bytes)

    def page(self, gfn: Gfn) -> memoryview:
        """One page's bytes, for a back end to read and write; XenError(EINVAL) where there is none."""
        try:
            return self.view(gfn * PAGE_BYTES, PAGE_BYTES)
        except MemoryFault:
            raise XenError(errno.EINVAL) from None

    def shared(self, gpa: int, size_bytes: int) -> SharedBytes:
        """A piece that the hypervisor keeps using; XenError(EINVAL) where there is no memory."""
        region = self.find(gpa)
        if region is None or size_bytes > region.end - gpa:
            raise XenError(errno.EINVAL)
        return SharedBytes(region.host, gpa - region.start, size_bytes, Gpa(gpa))

    def xen_page(self, page: int, pages: int = 1) -> SharedBytes:
        """The hypervisor's view of one of Xen's own pages, or of several."""
        return SharedBytes(self.xen_pages, page * PAGE_BYTES, pages * PAGE_BYTES)

    # ------------------------------------------------------------------------- pages that come and go

    def place_xen_page(self, gfn: Gfn, page: int) -> None:
        """Show one of Xen's pages at `gfn` and nowhere else; unpopulated space becomes memory.

        XenError(EINVAL) outside the address space, XenError(ENOSPC) after too many windows.
        """
        with _SHARING, self._lock:
            region = self._populated(gfn)
            before = self._placed.get(page)
            if before is not None and before != gfn:
                self._take_away(before)
            self._replace(region, gfn)
            region.host.show(gfn * PAGE_BYTES - region.start, self._xen_file, page)
            self._placed[page] = gfn
            self._maximum_gfn = max(self._maximum_gfn, gfn)

    def placed_at(self, page: int) -> Gfn | None:
        """Where one of Xen's pages is shown."""
        return self._placed.get(page)

    def remove_page(self, gfn: Gfn) -> None:
        """Take the page at `gfn` away from there; XenError(ENOENT) where there is none.

        It goes on to count, as on Xen: the guest has it, but no way to reach it.
        """
        with _SHARING, self._lock:
            region = self.find(gfn * PAGE_BYTES)
            if region is None or not region.has(gfn):
                raise XenError(errno.ENOENT)
            self._take_away(gfn)

    def move_page(self, source: Gfn, gfn: Gfn) -> None:
        """What is at one gfn is then at another, and no more at the first; a page that was there goes.

        XenError(EINVAL) where there is no page of RAM, XenError(ENOENT) where it cannot be put, and it is lost.
        """
        with _SHARING, self._lock:
            found = self.find(source * PAGE_BYTES)
            if found is None or not found.has(source) or self._is_shown(source):
                raise XenError(errno.EINVAL)
            if source == gfn:
                return
            content = bytes(self.view(source * PAGE_BYTES, PAGE_BYTES))
            self._take_away(source)  # as Xen has by the time that it finds it cannot be put there
            region = self._populated(gfn)
            self._replace(region, gfn)
            self._blank(gfn)
            self.view(gfn * PAGE_BYTES, PAGE_BYTES)[:] = content
            self._maximum_gfn = max(self._maximum_gfn, gfn)

    def has_page(self, gfn: Gfn) -> bool:
        """Whether there is memory at a gfn, of whatever kind."""
        with self._lock:
            region = self.find(gfn * PAGE_BYTES)
            return region is not None and region.has(gfn)

    def _mark(self, gfn: Gfn, *, there: bool) -> None:
        region = self.find(gfn * PAGE_BYTES)
        if region is not None:
            region.mark(gfn, there=there)

    def _is_shown(self, gfn: Gfn) -> bool:
        """Whether what is at a gfn is another domain's, or Xen's."""
        return gfn in self._foreign or gfn in self._placed.values()

    def _take_away(self, gfn: Gfn) -> None:
        """Whatever is at a gfn is there no more."""
        self._vacate(gfn)
        self._blank(gfn)
        self._mark(gfn, there=False)

    def _replace(self, region: Region, gfn: Gfn) -> None:
        """Something else is to be shown at a gfn: a page of the guest's that is there goes."""
        if region.has(gfn) and not self._is_shown(gfn):
            self._pages -= self._is_ram(gfn)
        self._vacate(gfn)
        region.mark(gfn, there=True)

    def _is_ram(self, gfn: Gfn) -> bool:
        return any(start <= gfn * PAGE_BYTES < end for start, end in self._ram_stretches())

    def _vacate(self, gfn: Gfn) -> None:
        """What is shown at a gfn goes: a page of its own to the host, and from whoever else has it mapped."""
        self._revoke(gfn)
        if gfn in self._foreign:
            self._forget_foreign(gfn)
            return
        if gfn in self._placed.values():
            self._placed = {page: at for page, at in self._placed.items() if at != gfn}
            return
        region = self.find(gfn * PAGE_BYTES)
        if region is None or region.host.file is None:
            return  # an anonymous page goes when another is put in its place
        index = gfn - region.start // PAGE_BYTES
        if region.absent is None or not region.absent[index]:
            region.host.discard(index * PAGE_BYTES, PAGE_BYTES)

    # ----------------------------------------------------------------------- pages of other domains

    def map_foreign(self, gfn: Gfn, source: "GuestMemory", source_gfn: Gfn, *, writable: bool = True) -> None:
        """Show a page of another domain's RAM at `gfn`, until one of the two removes it or ends.

        XenError(EINVAL) where one of the places cannot be, XenError(ENOMEM) where the host has too many mappings.
        """
        with _SHARING:
            file, page = source._own_page(source_gfn)
            with self._lock:
                region = self._populated(gfn)
                self._replace(region, gfn)
                try:
                    region.host.show(gfn * PAGE_BYTES - region.start, file, page, writable=writable)
                except KvmError:
                    raise XenError(errno.ENOMEM) from None
                self._foreign[gfn] = source, source_gfn
                source._lent.setdefault(source_gfn, set()).add((self, gfn))
                self._maximum_gfn = max(self._maximum_gfn, gfn)

    def unmap_foreign(self, gfn: Gfn) -> bool:
        """End what `map_foreign` has begun; False where it has ended before."""
        with _SHARING, self._lock:
            if gfn not in self._foreign:
                return False
            self._forget_foreign(gfn)
            self._blank(gfn)
            self._mark(gfn, there=False)
            return True

    def with_page(self, gfn: Gfn, use: Callable[[memoryview], Result]) -> Result:
        """Do something with a page of a domain, another's perhaps, that does not end meanwhile.  XenError(EINVAL)."""
        with _SHARING:
            return use(self.page(gfn))

    def _own_page(self, gfn: Gfn) -> tuple[PageFile, int]:
        """The file that holds a page of this domain's RAM, and where; XenError(EINVAL)."""
        region = self.find(gfn * PAGE_BYTES)
        if region is None or region.host.file is None or self._is_shown(gfn) or not region.has(gfn):
            raise XenError(errno.EINVAL)
        return region.host.file, gfn - region.start // PAGE_BYTES

    def _forget_foreign(self, gfn: Gfn) -> None:
        found = self._foreign.pop(gfn, None)
        if found is not None:
            source, source_gfn = found
            places = source._lent.get(source_gfn, set())
            places.discard((self, gfn))
            if not places:
                source._lent.pop(source_gfn, None)

    def _revoke(self, gfn: Gfn) -> None:
        """A page goes: nobody else keeps it."""
        for other, at in self._lent.pop(gfn, ()):
            other._foreign.pop(at, None)
            other._blank(at)
            other._mark(at, there=False)

    @property
    def shown_foreign(self) -> int:
        """How many pages of other domains are shown here."""
        return len(self._foreign)

    def _blank(self, gfn: Gfn) -> None:
        region = self.find(gfn * PAGE_BYTES)
        assert region is not None
        region.host.blank(gfn * PAGE_BYTES - region.start, PAGE_BYTES)

    def _populated(self, gfn: Gfn) -> Region:
        gpa = gfn * PAGE_BYTES
        region = self.find(gpa)
        if region is not None:
            return region
        if self._closed:
            raise XenError(errno.ESRCH)
        if gpa >= ADDRESS_LIMIT:
            raise XenError(errno.ENOENT)
        if any(first <= gpa < last for first, last in self._holes):
            raise XenError(errno.EINVAL)
        if self._windows == MAX_WINDOWS:
            raise XenError(errno.ENOSPC)
        self._windows += 1
        start, end = gpa & -WINDOW_BYTES, (gpa & -WINDOW_BYTES) + WINDOW_BYTES
        taken = [*((known.start, known.end) for known in self._regions.all), *self._holes]
        for first, last in taken:  # a window must not run into its neighbours, nor hide a device
            if last <= gpa:
                start = max(start, last)
            if first > gpa:
                end = min(end, first)
        window = self._add(start, self._memory(end - start))
        window.absent = bytearray(b"\1" * ((end - start) // PAGE_BYTES))  # until something is put there
        return window

    def record(self) -> "MemoryRecord":
        """The layout as data."""
        from vmm.machine.records import MemoryRecord

        with _SHARING, self._lock:
            by_slot = sorted(self._regions.all, key=lambda region: region.slot)
            return MemoryRecord(
                tuple((region.start, region.end - region.start) for region in by_slot),
                tuple(self._map),
                tuple((region.start, bytes(region.absent)) for region in by_slot if region.absent is not None),
                tuple(sorted(self._placed.items())),
                tuple((gfn, source.owner, at) for gfn, (source, at) in sorted(self._foreign.items())),
                self._pages,
                self._maximum_gfn,
            )

    def restore(self, record: "MemoryRecord") -> None:
        """Have another's layout, of fresh pages; this one is empty.  Foreign pages are for their users to map again."""
        with _SHARING, self._lock:
            for start, size in record.regions:
                self._add(start, self._memory(size, huge_pages=start in (0, HIGH_RAM_START)))
            for start, absent in record.absent:
                region = self.find(start)
                assert region is not None
                region.absent = bytearray(absent)
            self._map, self._maximum_gfn = list(record.map), record.maximum_gfn
        for page, gfn in record.placed:
            self.place_xen_page(gfn, page)
        self._pages = record.pages

    def close(self) -> None:
        """Release everything; the domain's vCPUs have ended and its slots go with its machine."""
        with _SHARING, self._lock:
            self._closed = True
            for gfn in list(self._lent):
                self._revoke(gfn)
            for gfn in list(self._foreign):
                self._forget_foreign(gfn)
            for region in self._regions.take_all():
                region.host.close()
                if region.host.file is not None:
                    region.host.file.close()
            self.xen_pages.close()
            self._xen_file.close()
