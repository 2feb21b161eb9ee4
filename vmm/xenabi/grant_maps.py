"""What one domain has mapped of other domains' grants.  xen/include/public/grant_table.h"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from vmm.xenabi.grants import GrantTable
from vmm.xenabi.interfaces import AddressSpace
from vmm.xenabi.values import Domid, Gfn, GrantRef

MAX_HANDLES = 65536


class Mapping(NamedTuple):
    """One mapped grant: whose it is, and where it is shown."""

    domid: Domid
    ref: GrantRef
    gfn: Gfn
    write: bool


MapsRecord = tuple[tuple[int, Mapping], ...]
"""Handles and what is behind them, as data."""


class GrantMaps:
    """Handle → mapping, of one domain.  `_lock` guards it.

    `tables` finds a domain's grant table by its domid, None where it has ended: a domid is never used again.
    """

    def __init__(self, tables: Callable[[Domid], GrantTable | None], limit: int = MAX_HANDLES) -> None:
        self._tables = tables
        self._limit = limit
        self._lock = threading.Lock()
        self._mappings: dict[int, Mapping] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._mappings)

    def add(self, mapping: Mapping) -> int | None:
        """The handle of a new mapping; None where there are too many."""
        with self._lock:
            if len(self._mappings) >= self._limit:
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

    def end(self, mapping: Mapping) -> None:
        """The use of a grant that a mapping stood for is over, and its handle forgotten."""
        table = self._tables(mapping.domid)
        if table is not None:
            table.release(mapping.ref, write=mapping.write)

    def end_all(self, memory: AddressSpace) -> None:
        """The domain ends: so do its uses of other domains' grants."""
        for handle in list(self._mappings):
            found = self.take(handle, None)
            if found is not None:
                memory.unmap_foreign(found.gfn)
                self.end(found)

    def record(self) -> MapsRecord:
        """The mappings as data."""
        with self._lock:
            return tuple(sorted(self._mappings.items()))

    def restore(self, record: MapsRecord) -> None:
        """Be what another domain's were; these are new."""
        with self._lock:
            self._mappings = dict(record)
            self._free = [handle for handle in range(max(self._mappings, default=0)) if handle not in self._mappings]
