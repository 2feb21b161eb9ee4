"""Which records somebody wants to see: `--trace event_channel_op,failed,vcpu=0`."""

import difflib
import re
from fnmatch import fnmatchcase
from typing import NamedTuple

from vmm.errors import UsageError
from vmm.observe.trace.records import KINDS, Record
from vmm.xenabi.constants import EvtchnStatusKind, Hypercall, Virq
from vmm.xenabi.hypercalls.registry import TABLE, Suboperations
from vmm.xenstore.wire import Kind


def known_names() -> list[str]:
    """All that a filter can name."""
    names = [*KINDS, *(op.name for op in Hypercall)]
    for found in TABLE.values():
        if isinstance(found, Suboperations):
            names += [entry.name for entry in found.entries.values()]
            names += [entry.name.partition(".")[2] for entry in found.entries.values()]
    names += [f"xenstore.{kind.name.lower()}" for kind in Kind]
    names += [f"event.{kind.name}" for kind in EvtchnStatusKind] + [f"event.virq_{virq.name.lower()}" for virq in Virq]
    return names


class Filter(NamedTuple):
    """`names` are patterns of which one must match; `but` those of which none may."""

    names: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    domid: int | None = None
    vcpu: int | None = None
    failed: bool = False

    def matches(self, record: Record) -> bool:
        """Whether a record is wanted."""
        if self.failed and not record.failed:
            return False
        if self.domid is not None and record.domid != self.domid:
            return False
        if self.vcpu is not None and getattr(record, "vcpu", None) != self.vcpu:
            return False
        if self.names and not any(_is(record, name) for name in self.names):
            return False
        return not any(_is(record, name) for name in self.but)


EVERYTHING = Filter()


def is_named(name: str, pattern: str) -> bool:
    """Whether a pattern means a name, `event_channel_op.send` say, by the whole or by either part."""
    return any(fnmatchcase(one, pattern) for one in (name, *name.split(".", 1)))


def _is(record: Record, pattern: str) -> bool:
    return fnmatchcase(record.kind, pattern) or is_named(record.name, pattern)


def parse_filter(text: str) -> Filter:
    """Terms between commas: a name or pattern, `!` before it for what is unwanted, `vcpu=N`, `dom=N`, `failed`, `all`.

    UsageError.
    """
    names: list[str] = []
    but: list[str] = []
    numbers: dict[str, int] = {}
    failed = False
    for term in filter(None, (part.strip() for part in text.split(","))):
        if match := re.fullmatch(r"(vcpu|dom)=(\d{1,5})", term):
            numbers[match[1]] = int(match[2])
        elif term == "failed":
            failed = True
        elif term == "all":
            names.append("*")
        else:
            name = check_name(term.removeprefix("!"), "--trace")
            (but if term.startswith("!") else names).append(name)
    return Filter(tuple(names), tuple(but), numbers.get("dom"), numbers.get("vcpu"), failed)


def check_name(name: str, option: str) -> str:
    """A name or pattern that can match something; UsageError, with the nearest one that could."""
    known = known_names()
    if any(fnmatchcase(candidate, name) for candidate in known) or (name.startswith("exit.") and name[5:]):
        return name
    near = difflib.get_close_matches(name, [*known, "failed"], 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(KINDS)}, and the names of Xen's hypercalls"
    raise UsageError(f"{option} knows nothing that is called {name!r}{hint}")
