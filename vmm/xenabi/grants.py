"""A domain's grant table: its frames, and how many of them the guest may have.

Source: xen/include/public/grant_table.h.
"""

import errno

from vmm.xenabi.constants import GRANT_STATUS_FRAMES
from vmm.xenabi.interfaces import XenError

MAX_FRAMES = 64
ENTRY_BYTES = 8  # version 1


class GrantTable:
    """Frames are pages of Xen's own, numbered from `first_page` on in the domain's Xen pages."""

    def __init__(self, first_page: int, max_frames: int = MAX_FRAMES) -> None:
        self._first_page = first_page
        self.max_frames = max_frames
        self.frames = 1
        self.version = 1

    def grow(self, frames: int) -> None:
        """Make the table at least this long; XenError(EINVAL) beyond the limit."""
        if frames > self.max_frames:
            raise XenError(errno.EINVAL)
        self.frames = max(self.frames, frames)

    def page(self, index: int) -> int:
        """The Xen page behind an index of XENMAPSPACE_grant_table, growing the table up to it."""
        if index & GRANT_STATUS_FRAMES or index >= self.max_frames:
            raise XenError(errno.EINVAL)
        self.grow(index + 1)
        return self._first_page + index

    def set_version(self, version: int) -> None:
        """Only version 1 so far; Linux falls back to it."""
        if version != 1:
            raise XenError(errno.ENOSYS)
