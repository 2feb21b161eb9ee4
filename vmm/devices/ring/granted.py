"""Pages that a guest has granted to the back ends in this process."""

from collections.abc import Sequence
from contextlib import suppress

from vmm.devices.ring.shared import SharedRing
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import AddressSpace, SharedBytes
from vmm.xenabi.values import BACKEND_DOMID, Gfn, Gpa, GrantRef, XenError

MAX_SEEN = 4096


class GrantedPages:
    """What one back end's thread has mapped of one guest; it unmaps each once."""

    def __init__(self, grants: GrantTable, memory: AddressSpace) -> None:
        self._grants = grants
        self._memory = memory
        self._seen: dict[Gfn | None, memoryview] = {}
        """Pages by gfn: they stay in place while the domain lives, and front ends use the same again and again."""

    def _acquire(self, ref: int, *, write: bool) -> tuple[Gfn, memoryview]:
        grant = GrantRef(ref)
        gfn = self._grants.acquire(grant, BACKEND_DOMID, write=write)
        return gfn, self._page(grant, gfn, write=write)

    def _page(self, grant: GrantRef, gfn: Gfn, *, write: bool) -> memoryview:
        """The page of a grant that has been acquired; XenError(EINVAL) where there is none, and then that is over."""
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        try:
            view = self._seen[gfn] = self._memory.page(gfn)
        except XenError:
            self._grants.release(grant, write=write)
            raise
        return view

    def map(self, ref: int, *, write: bool) -> memoryview:
        """A granted page's bytes, until `unmap`; XenError(EINVAL, EACCES)."""
        return self._acquire(ref, write=write)[1]

    def unmap(self, ref: int, *, write: bool) -> None:
        """End the use that `map` began."""
        self._grants.release(GrantRef(ref), write=write)

    def map_all(self, refs: Sequence[int], *, write: bool) -> list[memoryview | None]:
        """Many granted pages' bytes at once, in a fraction of the time; None for each that cannot be mapped."""
        gfns = self._grants.acquire_all(refs, BACKEND_DOMID, write=write)
        views = list(map(self._seen.get, gfns))
        if None in views:
            for number, (ref, gfn) in enumerate(zip(refs, gfns, strict=True)):
                if views[number] is None and gfn is not None:
                    with suppress(XenError):
                        views[number] = self._page(GrantRef(ref), gfn, write=write)
        return views

    def unmap_all(self, refs: Sequence[int], *, write: bool) -> None:
        """End the uses that `map_all` or `map` began."""
        self._grants.release_all(refs, write=write)

    def map_shared(self, ref: int) -> tuple[SharedBytes, memoryview]:
        """A granted page that both sides change: with atomic access, and its bytes."""
        gfn, page = self._acquire(ref, write=True)
        return self._memory.shared(Gpa(gfn * PAGE_BYTES), PAGE_BYTES), page

    def map_ring(self, refs: list[int], entry_bytes: int) -> SharedRing:
        """A ring over granted pages; XenError(EINVAL, EACCES), and then none of them stays mapped."""
        header, first = self.map_shared(refs[0])
        pages = [first]
        try:
            for ref in refs[1:]:
                pages.append(self.map(ref, write=True))
        except XenError:
            for ref in refs[: len(pages)]:
                self.unmap(ref, write=True)
            raise
        return SharedRing(header, pages, entry_bytes)
