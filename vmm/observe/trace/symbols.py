"""Names of addresses: from an ELF file's symbol table, or from a System.map or /proc/kallsyms."""

import re
from bisect import bisect_right
from pathlib import Path

from vmm.errors import PyvmmError

_LINE = re.compile(r"^([0-9a-fA-F]{8,16}) (\w) (\S+)(?:\s+\[\S+\])?$", re.M)
_NOT_CODE_OR_DATA = "aAuUwW"
FARTHEST_BYTES = 1 << 20
"""An address further behind the last symbol before it is not that symbol's."""


class Symbols:
    """Addresses by name and names by address."""

    def __init__(self, found: dict[str, int]) -> None:
        self.addresses = found
        self._sorted = sorted((address, name) for name, address in found.items())
        self._starts = [address for address, _ in self._sorted]

    def name(self, address: int) -> str | None:
        """`symbol+0x1f`, or None where none is near."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address - self._starts[index] > FARTHEST_BYTES:
            return None
        start, name = self._sorted[index]
        return f"{name}+{address - start:#x}" if address != start else name


def load_symbols(path: Path) -> Symbols:
    """The symbols of an ELF file or a list of them.  PyvmmError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PyvmmError(f"cannot read symbols from {path}: {error.strerror}") from None
    found = _from_elf(path) if data.startswith(b"\x7fELF") else _from_list(data.decode("utf-8", "replace"))
    if not found:
        raise PyvmmError(
            f"{path} has no symbols; give a vmlinux that is not stripped, a System.map, or root's view of /proc/kallsyms"
        )
    return Symbols(found)


def _from_list(text: str) -> dict[str, int]:
    lines = ((int(match[1], 16), match[2], match[3]) for match in _LINE.finditer(text))
    return {name: address for address, kind, name in lines if address and kind not in _NOT_CODE_OR_DATA}


def _from_elf(path: Path) -> dict[str, int]:
    from elftools.common.exceptions import ELFError  # heavy, and few runs name symbols
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with open(path, "rb") as stream:
            table = ELFFile(stream).get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                return {}
            return {
                symbol.name: symbol["st_value"]
                for symbol in table.iter_symbols()
                if symbol.name and symbol["st_shndx"] not in ("SHN_UNDEF", "SHN_ABS")
            }
    except ELFError as error:
        raise PyvmmError(f"cannot read symbols from {path}: {error}") from None
