"""Kernel modules for an initramfs: those that a guest needs before it has a file system of its own.

A distribution's kernel has the front ends of Xen's devices as modules.
"""

import lzma
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

from vmm.boot.bzimage import is_bzimage
from vmm.boot.errors import ImageError
from vmm.boot.image import open_file

_NEAR = (
    "drivers/block",
    "drivers/net",
    "net/9p",
    "fs/9p",
    "fs/netfs",
    "fs/fscache",
    "fs/ext4",
    "fs/jbd2",
    "fs",
    "lib",
    "crypto",
)
"""Where modules for a first file system are, so that not all thousands of files need be looked at."""


def kernel_release(image: Path) -> str | None:
    """`6.1.0-56-amd64`, as a Linux image says it; None where it says nothing.  ImageError."""
    data = open_file(image, "image")
    try:
        if is_bzimage(data):
            at = 0x200 + int.from_bytes(data[0x20E:0x210], "little")
            found = re.match(rb"[^\s\0]+", data[at : at + 128])
            return found[0].decode(errors="replace") if found else None
        at = data.find(b"Linux version ")
        found = re.match(rb"Linux version (\S+)", data[at : at + 128]) if at >= 0 else None
        return found[1].decode(errors="replace") if found else None
    finally:
        data.close()


def module_folder(image: Path) -> Path | None:
    """The modules that belong to an image: the host's own, or those of the package that the image was unpacked with."""
    release = kernel_release(image)
    if release is None:
        return None
    above = image.resolve().parent
    for base in (Path("/lib/modules"), above.parent / "lib/modules", above.parent / "usr/lib/modules", above.parent):
        if (base / release / "kernel").is_dir():
            return base / release
    return None


class ModuleFolder:
    """The modules of one kernel.  ImageError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, Path] = {}
        self._dependencies: dict[str, list[str]] | None = None
        index = path / "modules.dep"
        if index.exists():
            self._dependencies = {}
            for line in index.read_text().splitlines():
                name, _, needs = line.partition(":")
                self._add(path / name)
                self._dependencies[_name(Path(name))] = [_name(Path(need)) for need in needs.split()]
        else:
            for place in _NEAR:
                for file in (path / "kernel" / place).glob("*.ko*"):
                    self._add(file)
        self._complete = self._dependencies is not None

    def _add(self, file: Path) -> None:
        self._files[_name(file)] = file

    def _find(self, name: str) -> Path | None:
        if name not in self._files and not self._complete:
            self._complete = True
            for file in self._path.rglob("*.ko*"):
                self._add(file)
        return self._files.get(name)

    def closure(self, names: Iterable[str]) -> list[tuple[str, bytes]]:
        """File name and content of modules and all that they need, in an order that insmod can load them.

        What the kernel has built in, or has not at all, is left out.
        """
        loaded: dict[str, tuple[str, bytes]] = {}

        def visit(name: str) -> None:
            file = self._find(name)
            if file is None or name in loaded:
                return
            content = read_module(file)
            needs = _needs(content) if self._dependencies is None else self._dependencies[name]
            for need in needs:
                visit(need)
            loaded[name] = f"{name}.ko", content

        for name in names:
            visit(name.replace("-", "_"))
        return list(loaded.values())


def _name(file: Path) -> str:
    return file.name.partition(".ko")[0].replace("-", "_")


def read_module(file: Path) -> bytes:
    """A module's ELF, unpacked.  ImageError."""
    try:
        data = file.read_bytes()
        if file.suffix == ".xz":
            return lzma.decompress(data)
        if file.suffix == ".gz":
            return zlib.decompress(data, 31)
        if file.suffix == ".zst":
            import zstandard

            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except (OSError, lzma.LZMAError, zlib.error) as error:
        raise ImageError(f"cannot read the module {file}: {error}") from None
    return data


def _needs(module: bytes) -> list[str]:
    # Unpacked packages have no modules.dep: the dependencies are in each module's .modinfo.
    start = module.find(b"\0depends=")
    if start < 0:
        return []
    value = module[start + 9 : module.index(b"\0", start + 9)].decode()
    return [name.replace("-", "_") for name in value.split(",") if name]
