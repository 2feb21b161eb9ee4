"""Pages that a guest has granted to the back ends in this process."""

from vmm.devices.shared_ring import SharedRing
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import Domid, Gfn, Gpa, GrantRef, GuestMemory, SharedBytes, XenError

BACKEND_DOMID = Domid(0)
"""The domain that back ends in this process act for."""


class GrantedPages:
    """What one back end's thread has mapped of one guest; it unmaps each once."""

    def __init__(self, grants: GrantTable, memory: GuestMemory) -> None:
        self._grants = grants
        self._memory = memory

    def _acquire(self, ref: int, *, write: bool) -> Gfn:
        grant = GrantRef(ref)
        gfn = self._grants.acquire(grant, BACKEND_DOMID, write=write)
        try:
            self._memory.page(gfn)
        except XenError:
            self._grants.release(grant, write=write)
            raise
        return gfn

    def map(self, ref: int, *, write: bool) -> memoryview:
        """A granted page's bytes, until `unmap`; XenError(EINVAL, EACCES)."""
        return self._memory.page(self._acquire(ref, write=write))

    def unmap(self, ref: int, *, write: bool) -> None:
        """End the use that `map` began."""
        self._grants.release(GrantRef(ref), write=write)

    def map_shared(self, ref: int) -> tuple[SharedBytes, memoryview]:
        """A granted page that both sides change: with atomic access, and its bytes."""
        gfn = self._acquire(ref, write=True)
        return self._memory.shared(Gpa(gfn * PAGE_BYTES), PAGE_BYTES), self._memory.page(gfn)

    def map_ring(self, refs: list[int], entry_bytes: int) -> SharedRing:
        """A ring over granted pages; XenError(EINVAL, EACCES), and then none of them stays mapped."""
        gfns: list[Gfn] = []
        try:
            for ref in refs:
                gfns.append(self._acquire(ref, write=True))
        except XenError:
            for ref in refs[: len(gfns)]:
                self.unmap(ref, write=True)
            raise
        header = self._memory.shared(Gpa(gfns[0] * PAGE_BYTES), PAGE_BYTES)
        return SharedRing(header, [self._memory.page(gfn) for gfn in gfns], entry_bytes)
