"""Disks in formats that are QEMU's business (qcow2, vhdx and so on): qemu-nbd reads them, libnbd talks to it."""

import errno
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vmm.devices.block.protocol import SECTOR_BYTES
from vmm.errors import PyvmmError

GRANULARITY_BYTES = 65536


class NbdImage:
    """One image, served by a qemu-nbd of its own that ends with it.  Methods raise OSError; any thread may call them."""

    def __init__(self, path: Path, image_format: str, *, read_only: bool, direct: bool) -> None:
        """PyvmmError where it cannot be used."""
        try:
            import nbd
        except ImportError:
            raise PyvmmError(
                f"--disk {path}: the format {image_format} needs the library libnbd for Python; install it (Debian: "
                "python3-libnbd)"
            ) from None
        program = shutil.which("qemu-nbd")
        if program is None:
            raise PyvmmError(f"--disk {path}: the format {image_format} needs qemu-nbd; install it (Debian: qemu-utils)")
        if not path.exists():
            raise PyvmmError(f"--disk {path}: No such file or directory")
        self.path = path
        self.read_only = read_only
        self._error: type[Exception] = nbd.Error
        self._nbd: Any = nbd.NBD()
        options = ["--read-only"] if read_only else []
        options.append("--cache=none" if direct else "--cache=writeback")
        try:
            self._nbd.connect_systemd_socket_activation(
                [program, f"--format={image_format}", "--discard=unmap", "--shared=1", *options, str(path.absolute())]
            )
            size = int(self._nbd.get_size())
        except nbd.Error as error:
            self.close()
            raise PyvmmError(f"--disk {path}: qemu-nbd cannot serve it as {image_format} ({error})") from None
        self.size_bytes = size // SECTOR_BYTES * SECTOR_BYTES
        self.sector_bytes = self.physical_sector_bytes = SECTOR_BYTES
        self.discard_granularity = GRANULARITY_BYTES
        self.discard_zeroes = False

    def _do(self, what: str, *arguments: object) -> Any:
        try:
            return getattr(self._nbd, what)(*arguments)
        except self._error as error:
            raise OSError(getattr(error, "errnum", 0) or errno.EIO, str(error)) from None

    def read(self, views: Sequence[memoryview], offset_bytes: int) -> None:
        """Fill the views."""
        data = memoryview(self._do("pread", sum(map(len, views)), offset_bytes))
        at = 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)

    def write(self, views: Sequence[memoryview], offset_bytes: int) -> None:
        """Write the views."""
        self._do("pwrite", bytearray().join(views), offset_bytes)

    def flush(self) -> None:
        """Have all that has been written on the medium."""
        self._do("flush")

    def discard(self, offset_bytes: int, size_bytes: int) -> None:
        """Give the space back."""
        self._do("trim", size_bytes, offset_bytes)

    def close(self) -> None:
        """End qemu-nbd."""
        handle, self._nbd = self._nbd, None
        if handle is not None:
            with suppress(self._error):  # it may have ended by itself
                handle.shutdown()
