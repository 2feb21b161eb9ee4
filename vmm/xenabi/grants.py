"""A domain's grant table: its frames, how many of them the guest may have, and the layout of their entries.

Source: xen/include/public/grant_table.h.
"""

import errno
import struct

from vmm.xenabi.constants import GRANT_STATUS_FRAMES, PAGE_BYTES
from vmm.xenabi.interfaces import SharedBytes, XenError

MAX_FRAMES = 64
RESERVED_ENTRIES = 8
_V1, _V2 = struct.Struct("<HHI"), struct.Struct("<HHIQ")
_V2_ENTRIES_A_FRAME = PAGE_BYTES // _V2.size
_STATUSES_A_FRAME = PAGE_BYTES // 2
FRAMES_A_STATUS_FRAME = _STATUSES_A_FRAME // _V2_ENTRIES_A_FRAME
TABLE_PAGES = MAX_FRAMES + MAX_FRAMES // FRAMES_A_STATUS_FRAME
"""Xen's own pages that a table takes: its frames, and behind them its status frames."""


class GrantTable:
    """Frames are pages of Xen's own, numbered from `first_page` on; `pages` shows all of them to the hypervisor."""

    def __init__(self, first_page: int, pages: SharedBytes, max_frames: int = MAX_FRAMES) -> None:
        self._first_page = first_page
        self._pages = pages
        self.max_frames = max_frames
        self.frames = 1
        self.version = 1

    @property
    def status_frames(self) -> int:
        """Frames of version 2's status words; version 1 has none."""
        return -(-self.frames // FRAMES_A_STATUS_FRAME) if self.version == 2 else 0

    def grow(self, frames: int) -> None:
        """Make the table at least this long; XenError(EINVAL) beyond the limit."""
        if frames > self.max_frames:
            raise XenError(errno.EINVAL)
        self.frames = max(self.frames, frames)

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
        """Change the layout: the reserved entries are converted, all others become unused."""
        if version == self.version:
            return
        old, new = (_V1, _V2) if version == 2 else (_V2, _V1)
        kept = [old.unpack(self._pages.read(index * old.size, old.size)) for index in range(RESERVED_ENTRIES)]
        self._pages.write(0, bytes(TABLE_PAGES * PAGE_BYTES))
        for index, entry in enumerate(kept):
            flags, domid, frame = entry[0], entry[1], entry[-1]
            fields = (flags, domid, 0, frame) if version == 2 else (flags, domid, frame & 0xFFFF_FFFF)
            self._pages.write(index * new.size, new.pack(*fields))
        self.version = version
