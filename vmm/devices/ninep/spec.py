"""`--share PATH[,OPTION...]`, taken apart."""

import re
from pathlib import Path
from typing import NamedTuple

from vmm.errors import UsageError

FORM = "PATH[,tag=NAME][,ro]"


class Share(NamedTuple):
    """One folder that a guest may use."""

    path: Path
    tag: str
    read_only: bool = False

    @property
    def device(self) -> str:
        """Its row in `devices.kinds`."""
        return "share"


def parse_share(text: str, default_tag: str) -> Share:
    """From the command line.  UsageError."""
    path, *options = text.split(",")
    share = Share(Path(path).absolute(), default_tag)
    if not path or not share.path.is_dir():
        raise UsageError(f"--share {text}: {path!r} is not a folder; write --share {FORM}")
    for option in options:
        word, _, value = option.partition("=")
        if option == "ro":
            share = share._replace(read_only=True)
        elif word == "tag" and re.fullmatch(r"[A-Za-z0-9_.-]{1,30}", value):
            share = share._replace(tag=value)
        else:
            raise UsageError(f"--share {text}: {option!r} is not an option; write --share {FORM}")
    return share
