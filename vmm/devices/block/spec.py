"""`--disk PATH[,OPTION...]`, taken apart."""

import re
from pathlib import Path
from typing import NamedTuple

from vmm.errors import UsageError

XVD_MAJOR = 202
EXTENDED = 1 << 28
FORMATS = ("raw", "qcow2", "vhdx", "vmdk", "vpc", "vdi", "qed")
FORM = f"PATH[,ro][,name=xvda][,direct][,queues=N][,nodiscard][,format={'|'.join(FORMATS)}]"


class Disk(NamedTuple):
    """One disk that a user asks for."""

    path: Path
    name: str
    number: int
    """The virtual device, as xenstore numbers it."""
    read_only: bool = False
    direct: bool = False
    discard: bool = True
    queues: int | None = None
    format: str | None = None

    @property
    def device(self) -> str:
        """Its row in `devices.kinds`."""
        return "disk"


def parse_disk(text: str, default_name: str) -> Disk:
    """From the command line.  UsageError."""
    path, *options = text.split(",")
    if not path:
        raise UsageError(f"--disk {text!r} names no file; write --disk {FORM}")
    disk = Disk(Path(path), default_name, device_number(default_name))
    for option in options:
        word, _, value = option.partition("=")
        if option == "ro":
            disk = disk._replace(read_only=True)
        elif option == "direct":
            disk = disk._replace(direct=True)
        elif option == "nodiscard":
            disk = disk._replace(discard=False)
        elif word == "name":
            disk = disk._replace(name=value, number=device_number(value))
        elif word == "queues" and re.fullmatch("[1-8]", value):
            disk = disk._replace(queues=int(value))
        elif word == "format" and value in FORMATS:
            disk = disk._replace(format=value)
        else:
            raise UsageError(f"--disk {text}: {option!r} is not an option; write --disk {FORM}")
    return disk


def device_number(name: str) -> int:
    """The number of `xvda`, `xvdb3` or the like (docs/man/xen-vbd-interface).  UsageError."""
    match = re.fullmatch(r"xvd([a-z]{1,2})([1-9]\d?)?", name)
    if match is None:
        raise UsageError(f"a disk's name is xvda to xvdzz, with or without a partition's number, not {name!r}")
    disk = 0
    for letter in match[1]:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    partition = int(match[2] or 0)
    if disk <= 16 and partition < 16:
        return XVD_MAJOR << 8 | (disk - 1) << 4 | partition
    return EXTENDED | (disk - 1) << 8 | partition


def device_name(index: int) -> str:
    """The name of the disk at a position: xvda, xvdb and so on."""
    letters = ""
    while index >= 0:
        letters = chr(ord("a") + index % 26) + letters
        index = index // 26 - 1
    return f"xvd{letters}"
