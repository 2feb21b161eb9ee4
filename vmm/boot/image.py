"""Opening an image file: a PVH ELF as it is, or the one inside a bzImage."""

import mmap
import os
import stat
from pathlib import Path

from vmm.boot.bzimage import is_bzimage, payload
from vmm.boot.elf import ElfImage
from vmm.boot.errors import ImageError


def open_file(path: Path, what: str) -> mmap.mmap:
    """A file's bytes, mapped and not read; ImageError where it cannot be opened or is empty."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for somebody who writes.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ImageError(f"the {what} {path} is not a regular file")
            if not found.st_size:
                raise ImageError(f"the {what} {path} is empty")
            return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except OSError as error:
        raise ImageError(f"cannot open the {what} {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ImageError(f"cannot read the {what} {path}: {error}") from None


def load_image(path: Path) -> ElfImage:
    """Parse a kernel or other PVH image.  ImageError."""
    data = open_file(path, "image")
    if is_bzimage(data):
        plain = payload(data, str(path))
        data.close()
        return ElfImage(plain, f"the kernel inside {path}")
    return ElfImage(data, str(path))
