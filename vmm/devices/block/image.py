"""What a disk's data are kept in: a raw file or a block device of the host's."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from vmm.devices.block.protocol import SECTOR_BYTES
from vmm.errors import PyvmmError
from vmm.host import log

BLKSSZGET, BLKPBSZGET, BLKDISCARD = 0x1268, 0x127B, 0x1277
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
_MAGICS = {b"QFI\xfb": "qcow2", b"vhdxfile": "vhdx", b"KDMV": "vmdk", b"conectix": "vpc", b"QED\0": "qed"}


class RawImage:
    """An open file, locked against a second user.  Reads and writes may come from several threads."""

    def __init__(self, path: Path, *, read_only: bool = False, direct: bool = False, checked: bool = True) -> None:
        """PyvmmError where it cannot be used, says why; `checked`: also where it looks like another format."""
        self.path = path
        self.read_only = read_only
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            if direct and error.errno == errno.EINVAL:
                raise PyvmmError(f"--disk {path}: its file system has no direct I/O; leave out `direct`") from None
            if not read_only and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise PyvmmError(f"--disk {path}: {error.strerror}; add `,ro` to use it read-only") from None
            raise PyvmmError(f"--disk {path}: {error.strerror}") from None
        try:
            self._examine(checked=checked)
        except OSError as error:
            self.close()
            raise PyvmmError(f"--disk {path}: {error.strerror}") from None
        except PyvmmError:
            self.close()
            raise

    def _examine(self, *, checked: bool) -> None:
        fd, status = self._fd, os.fstat(self._fd)
        self.is_device = stat.S_ISBLK(status.st_mode)
        if not self.is_device and not stat.S_ISREG(status.st_mode):
            raise PyvmmError(f"--disk {self.path} is neither a file nor a block device")
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PyvmmError(f"--disk {self.path} is in use by another guest; add `,ro` to both to share it") from None
        if checked:
            with self.path.open("rb", buffering=0) as plain:  # a short read that direct I/O would refuse
                head = plain.read(max(map(len, _MAGICS)))
            found = next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)
            if found is not None:
                raise PyvmmError(
                    f"--disk {self.path} looks like {found}: add `,format={found}`, or `,format=raw` if it is not"
                )
        self.discard_zeroes = not self.is_device
        all_bytes = os.lseek(fd, 0, os.SEEK_END)
        self.size_bytes = all_bytes // SECTOR_BYTES * SECTOR_BYTES
        if all_bytes > self.size_bytes > 0:
            log.get(__name__).warning(
                "the guest does not see the end of a disk image, which is no whole number of sectors",
                file=str(self.path), bytes=all_bytes, left_out=all_bytes - self.size_bytes,
            )  # fmt: skip
        if not self.size_bytes:
            raise PyvmmError(f"--disk {self.path} holds less than a sector of {SECTOR_BYTES} bytes")
        self.sector_bytes = self._from_device(BLKSSZGET) if self.is_device else SECTOR_BYTES
        self.physical_sector_bytes = self._from_device(BLKPBSZGET) if self.is_device else SECTOR_BYTES
        self.discard_granularity = self.sector_bytes if self.is_device else max(status.st_blksize, SECTOR_BYTES)

    def _from_device(self, request: int) -> int:
        return int.from_bytes(fcntl.ioctl(self._fd, request, bytes(4)), "little")

    def read(self, views: Sequence[memoryview], offset_bytes: int) -> None:
        """Fill the views; OSError, EIO where the file has become too short."""
        self._whole(os.preadv, views, offset_bytes)

    def write(self, views: Sequence[memoryview], offset_bytes: int) -> None:
        """Write the views; OSError."""
        self._whole(os.pwritev, views, offset_bytes)

    def _whole(self, move: "Move", views: Sequence[memoryview], offset_bytes: int) -> None:
        left = sum(map(len, views))
        while (done := move(self._fd, views, offset_bytes)) < left:
            if not done:
                raise OSError(errno.EIO, "the file ends too early")
            left -= done
            offset_bytes += done
            views = _after(views, done)

    def flush(self) -> None:
        """Have all that has been written on the medium; OSError."""
        os.fdatasync(self._fd)

    def discard(self, offset_bytes: int, size_bytes: int) -> None:
        """Give the space back to the host: it reads as zeros in a file; OSError."""
        if self.is_device:
            span = offset_bytes.to_bytes(8, "little") + size_bytes.to_bytes(8, "little")
            fcntl.ioctl(self._fd, BLKDISCARD, span)
            return
        import ctypes  # Python has no fallocate with a mode; most guests never discard

        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_bytes, size_bytes) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Release the file and its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


Move = Callable[[int, Sequence[memoryview], int], int]


def _after(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of views once so many bytes of them are done."""
    left = []
    for view in views:
        if done < len(view):
            left.append(view[done:])
        done = max(done - len(view), 0)
    return left
