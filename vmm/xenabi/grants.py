"""A domain's grant table: its frames, the layout of their entries, and who makes use of which page.

Source: xen/include/public/grant_table.h.
"""

import errno
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from vmm.xenabi.constants import GRANT_STATUS_FRAMES, PAGE_BYTES
from vmm.xenabi.interfaces import SharedBytes
from vmm.xenabi.values import Domid, Gfn, GrantRef, XenError

if TYPE_CHECKING:
    from vmm.xenabi.records import GrantsRecord

MAX_FRAMES = 64
RESERVED_ENTRIES = 8
_V1, _V2 = struct.Struct("<HHI"), struct.Struct("<HHIQ")
_PERMIT_ACCESS, _TYPE_MASK = 1, 3
_READONLY, _READING, _WRITING = 1 << 2, 1 << 3, 1 << 4
_KIND_MASK = _TYPE_MASK | 1 << 8
"""The type, and GTF_sub_page: neither part of a page nor a transitive grant can be mapped, as on Xen."""
_UNTOLD = 0xFFFF & ~(_KIND_MASK | _READONLY)
"""Flags that do not decide whether a page may be used."""
_NO_FRAME = 0xFFFF_FFFF
_ONE = 1, 1 << 32
"""One use for reading, one for writing, in the number that counts both."""
_MANY = 3
"""From so many references on it pays to look at all of them at once."""
_TRIES = 8
_V2_ENTRIES_A_FRAME = PAGE_BYTES // _V2.size
_STATUSES_A_FRAME = PAGE_BYTES // 2
FRAMES_A_STATUS_FRAME = _STATUSES_A_FRAME // _V2_ENTRIES_A_FRAME
TABLE_PAGES = MAX_FRAMES + MAX_FRAMES // FRAMES_A_STATUS_FRAME
"""Xen's own pages that a table takes: its frames, and behind them its status frames."""


class GrantTable:
    """Frames are pages of Xen's own, numbered from `first_page` on; `pages` shows all of them to the hypervisor.

    `_lock` guards all of it: the layout, and `_users`, how many readers and writers each grant reference in use has.
    """

    def __init__(self, first_page: int, pages: SharedBytes, max_frames: int = MAX_FRAMES) -> None:
        self._first_page = first_page
        self._pages = pages
        self.max_frames = max_frames
        self.frames = 1
        self.version = 1
        self._lock = threading.Lock()
        self._users: dict[GrantRef, int] = {}
        self._closed = False
        self._words = pages.words()

    @property
    def status_frames(self) -> int:
        """Frames of version 2's status words; version 1 has none."""
        return -(-self.frames // FRAMES_A_STATUS_FRAME) if self.version == 2 else 0

    def grow(self, frames: int) -> None:
        """Make the table at least this long; XenError(EINVAL) beyond the limit."""
        if frames > self.max_frames:
            raise XenError(errno.EINVAL)
        with self._lock:
            self.frames = max(self.frames, frames)

    def record(self) -> "GrantsRecord":
        """The table as data."""
        from vmm.xenabi.records import GrantsRecord

        with self._lock:
            return GrantsRecord(self.version, self.frames, tuple(sorted(self._users.items())))

    def restore(self, record: "GrantsRecord") -> None:
        """Be what another table was; this one is new, and its pages hold what the other's did."""
        with self._lock:
            self.version, self.frames, self._users = record.version, record.frames, dict(record.users)

    def page(self, index: int) -> int:
        """The Xen page behind an index of XENMAPSPACE_grant_table, growing the table up to it."""
        number = index & ~GRANT_STATUS_FRAMES
        if index & GRANT_STATUS_FRAMES:
            if self.version != 2:
                raise XenError(errno.EINVAL)
            self.grow((number + 1) * FRAMES_A_STATUS_FRAME)
            return self._first_page + MAX_FRAMES + number
        self.grow(number + 1)
        return self._first_page + number

    def set_version(self, version: int) -> None:
        """Change the layout: the reserved entries are converted, all others become unused.

        XenError(EBUSY) while somebody makes use of a grant.
        """
        with self._lock:
            self._set_version(version)

    def _set_version(self, version: int) -> None:
        if version == self.version:
            return
        if self._users:
            raise XenError(errno.EBUSY)
        old, new = (_V1, _V2) if version == 2 else (_V2, _V1)
        kept = [old.unpack(self._pages.read(index * old.size, old.size)) for index in range(RESERVED_ENTRIES)]
        self._pages.write(0, bytes(TABLE_PAGES * PAGE_BYTES))
        for index, entry in enumerate(kept):
            flags, domid, frame = entry[0], entry[1], entry[-1]
            fields = (flags, domid, 0, frame) if version == 2 else (flags, domid, frame & 0xFFFF_FFFF)
            self._pages.write(index * new.size, new.pack(*fields))
        self.version = version

    def in_use(self) -> list[GrantRef]:
        """The references that somebody makes use of."""
        with self._lock:
            return sorted(self._users)

    # ------------------------------------------------------------------------- access by other domains

    def acquire(self, ref: GrantRef, by: Domid, *, write: bool) -> Gfn:
        """Begin to use a granted page, and say so in its entry, until `release`.  From any thread.

        XenError(EINVAL) where there is no such grant, XenError(EACCES) where it is for another domain or only for reading.
        """
        with self._lock:
            return self._begin(ref, by, write=write)

    def acquire_all(self, refs: Sequence[int], by: Domid, *, write: bool) -> list[Gfn | None]:
        """`acquire` for many references, None where it would be refused: what is usual takes a fraction of the time."""
        with self._lock:
            if len(refs) < _MANY or not self._are_unused(refs):
                return [self._try(ref, by, write=write) for ref in refs]
            wanted, ignored = (_READING | _WRITING, _UNTOLD) if write else (_READING, _UNTOLD | _READONLY)
            frames = self._pages.mark_entries(refs, _PERMIT_ACCESS | by << 16, ignored, wanted)
            self._users.update(dict.fromkeys(cast("Sequence[GrantRef]", refs), _ONE[write]))
            gfns = cast("list[Gfn | None]", frames)
            if _NO_FRAME in frames:  # these go one by one; a guest may also have written that number
                for number, ref in enumerate(refs):
                    if gfns[number] == _NO_FRAME:
                        del self._users[GrantRef(ref)]
                        gfns[number] = self._try(ref, by, write=write)
            return gfns

    def _are_unused(self, refs: Sequence[int]) -> bool:
        # So that one use each, of entries that are there, is all that has to be written down.
        return (
            self.version == 1
            and not self._closed
            and self.has(min(refs))
            and self.has(max(refs))
            and len(set(refs)) == len(refs)
            and self._users.keys().isdisjoint(refs)
        )

    def _try(self, ref: int, by: Domid, *, write: bool) -> Gfn | None:
        try:
            return self._begin(GrantRef(ref), by, write=write)
        except XenError:
            return None

    def _begin(self, ref: GrantRef, by: Domid, *, write: bool) -> Gfn:
        if self._closed or not self.has(ref):
            raise XenError(errno.EINVAL)
        gfn = self._mark(ref, by, _READING | _WRITING if write else _READING)
        self._users[ref] = self._users.get(ref, 0) + _ONE[write]
        return gfn

    def has(self, ref: int) -> bool:
        """Whether the table is long enough for a reference."""
        return 0 <= ref < self.frames * (_V2_ENTRIES_A_FRAME if self.version == 2 else PAGE_BYTES // _V1.size)

    def swap(self, one: GrantRef, other: GrantRef) -> None:
        """Exchange two entries of the table.  XenError(EBUSY) where one of them is in use."""
        if one == other:
            return
        with self._lock:
            if one in self._users or other in self._users:
                raise XenError(errno.EBUSY)
            size = (_V2 if self.version == 2 else _V1).size
            first, second = (self._pages.read(ref * size, size) for ref in (one, other))
            self._pages.write(one * size, second)
            self._pages.write(other * size, first)

    def give(self, ref: GrantRef, to: Domid, gfn: Gfn) -> None:
        """Grant a page as the toolstack does, before the domain starts: one of the reserved references."""
        self._pages.write(ref * _V1.size, _V1.pack(_PERMIT_ACCESS, to, gfn))

    def close(self) -> None:
        """The domain ends and its frames go: nobody is told of uses that end later."""
        with self._lock:
            self._closed = True
            self._users.clear()

    def _mark(self, ref: GrantRef, by: Domid, wanted: int) -> Gfn:
        words = self._words
        at = ref * (4 if self.version == 2 else 2)
        for _ in range(_TRIES):
            word = words[at]
            if word & _KIND_MASK != _PERMIT_ACCESS:
                raise XenError(errno.EINVAL)
            if word >> 16 != by or (word & _READONLY and wanted & _WRITING):
                raise XenError(errno.EACCES)
            if self.version == 2:
                self._set_status(ref, wanted)
                if words[at] == word:
                    return Gfn(words[at + 2] | words[at + 3] << 32)
                if ref not in self._users:
                    self._clear_status(ref, wanted)
            elif word & wanted == wanted or self._pages.exchange_32(4 * at, word, word | wanted) == word:
                return Gfn(words[at + 1])
        raise XenError(errno.EINVAL)  # the guest keeps changing it

    def release(self, ref: GrantRef, *, write: bool) -> None:
        """End what `acquire` has begun; nothing to do where the table's domain has ended."""
        self.release_all([ref], write=write)

    def release_all(self, refs: Sequence[int], *, write: bool) -> None:
        """End what `acquire_all` has begun."""
        with self._lock:
            if self._closed:
                return
            known = cast("Sequence[GrantRef]", refs)
            uses = list(map(self._users.get, known)) if len(refs) >= _MANY and self.version == 1 else []
            if uses and uses.count(_ONE[write]) == len(uses) == len(set(refs)):  # no other use of any of them
                deque(map(self._users.pop, known), 0)
                self._pages.unmark_entries(refs, _READING | _WRITING)
            else:
                for ref in known:
                    self._end(ref, write=write)

    def _end(self, ref: GrantRef, *, write: bool) -> None:
        uses = self._users[ref] = self._users[ref] - _ONE[write]
        if uses >= _ONE[True]:
            return
        unused = _WRITING if uses else _READING | _WRITING
        if not uses:
            del self._users[ref]
        if self.version == 2:
            self._clear_status(ref, unused)
        else:
            self._pages.unmark_entries([ref], unused)

    def _status_word(self, ref: GrantRef) -> tuple[int, int]:
        """Where the 64-bit word with a reference's status is, and the bit that it begins at."""
        return MAX_FRAMES * PAGE_BYTES + (ref * 2 & ~7), ref * 16 % 64

    def _set_status(self, ref: GrantRef, bits: int) -> None:
        at, shift = self._status_word(ref)
        self._pages.fetch_or_64(at, bits << shift)

    def _clear_status(self, ref: GrantRef, bits: int) -> None:
        at, shift = self._status_word(ref)
        self._pages.fetch_and_64(at, ~(bits << shift) & (1 << 64) - 1)
