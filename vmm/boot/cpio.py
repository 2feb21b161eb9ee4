"""Writing a cpio archive in the "newc" form, the only one that Linux unpacks as its initramfs.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat


class CpioWriter:
    """An archive in the making; entries appear in the order of the calls, so folders come first."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder."""
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file with these bytes; `mode` is its permissions."""
        self._entry(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device with these numbers."""
        self._entry(name, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive, with its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        path = name.strip("/").encode() + b"\0"
        fields = (
            self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, device[0], device[1], len(path), 0,
        )  # fmt: skip
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
