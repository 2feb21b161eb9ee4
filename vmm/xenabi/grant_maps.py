"""What one domain has mapped of other domains' grants.  xen/include/public/grant_table.h"""

import threading
from typing import NamedTuple

from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import AddressSpace
from vmm.xenabi.values import Gfn, GrantRef

MAX_HANDLES = 65536


class Mapping(NamedTuple):
    """One mapped grant: whose it is, and where it is shown."""

    grants: GrantTable
    ref: GrantRef
    gfn: Gfn
    write: bool


class GrantMaps:
    """Handle → mapping, of one domain.  `_lock` guards it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: dict[int, Mapping] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._mappings)

    def add(self, mapping: Mapping) -> int | None:
        """The handle of a new mapping; None where there are too many."""
        with self._lock:
            if len(self._mappings) >= MAX_HANDLES:
                return None
            handle = self._free.pop() if self._free else len(self._mappings)
            self._mappings[handle] = mapping
            return handle

    def take(self, handle: int, gfn: Gfn | None) -> Mapping | None:
        """Forget a handle that is shown at `gfn`; None where it is not."""
        with self._lock:
            found = self._mappings.get(handle)
            if found is None or (gfn is not None and found.gfn != gfn):
                return None
            del self._mappings[handle]
            self._free.append(handle)
            return found

    def end_all(self, memory: AddressSpace) -> None:
        """The domain ends: so do its uses of other domains' grants."""
        for handle in list(self._mappings):
            found = self.take(handle, None)
            if found is not None:
                memory.unmap_foreign(found.gfn)
                found.grants.release(found.ref, write=found.write)
