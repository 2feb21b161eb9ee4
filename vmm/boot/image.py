"""Opening an image file: a PVH ELF as it is, or the one inside a bzImage.

pyelftools is imported when a file is there to be parsed, which a `Loading` does while a thread unpacks it.
"""

import mmap
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.boot.bzimage import is_bzimage, payload
from vmm.boot.errors import ImageError

if TYPE_CHECKING:
    from vmm.boot.elf import Data, ElfImage


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


def load_image(path: Path) -> "ElfImage":
    """Parse a kernel or other PVH image.  ImageError."""
    from vmm.boot.elf import ElfImage

    return ElfImage(*_plain(path))


class Loading:
    """An image whose file a thread reads and unpacks while its owner does other things, until `image` asks for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: tuple[Data, str] | BaseException | None = None
        # A daemon: whoever gives up meanwhile does not wait for a kernel to be unpacked.
        self._thread = threading.Thread(target=self._load, name="image", daemon=True)
        self._thread.start()

    def _load(self) -> None:
        try:
            self._found = _plain(self._path)
        except BaseException as error:
            self._found = error  # the owner's, who gets it from `image`

    def image(self) -> "ElfImage":
        """The image, once.  ImageError."""
        from vmm.boot.elf import ElfImage

        self._thread.join()
        found, self._found = self._found, None
        if isinstance(found, BaseException):
            raise found
        assert found is not None
        return ElfImage(*found)


def _plain(path: Path) -> "tuple[Data, str]":
    """An ELF file's bytes, and what to call it."""
    data = open_file(path, "image")
    if not is_bzimage(data):
        return data, str(path)
    plain = payload(data, str(path))
    data.close()
    return plain, f"the kernel inside {path}"
