"""Opening an image file: a PVH ELF as it is, or the one inside a bzImage."""

import mmap
import os
from pathlib import Path

from vmm.boot.bzimage import is_bzimage, payload
from vmm.boot.elf import ElfImage
from vmm.boot.errors import ImageError


def open_file(path: Path, what: str) -> mmap.mmap:
    """A file's bytes, mapped and not read; ImageError where it cannot be opened or is empty."""
    try:
        with open(path, "rb") as handle:
            if not os.fstat(handle.fileno()).st_size:
                raise ImageError(f"the {what} {path} is empty")
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
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
