"""The xenstore tree with a disk, a network card and a console connected: what Xen shows, and what pyvmm does."""

import re
from pathlib import Path

from tests.boot.reference import DIFFERENCES
from vmm.xenstore.client import Client

HERE = Path(__file__).parent
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def tree_of(socket: Path) -> set[str]:
    """All nodes with their permissions, as `PATH (PERMISSIONS)`; a VM's UUID is the same for all.

    Less the second vCPU, which the reference's guest had not.
    """
    found = set()
    with Client(socket) as client:
        waiting = [""]
        while waiting:
            path = waiting.pop()
            for name in client.children(path or "/"):
                below = f"{path}/{name}"
                if below == "/local/domain/1/cpu/1":
                    continue
                found.add(f"{_UUID.sub('UUID', below)} ({','.join(client.permissions(below))})")
                waiting.append(below)
    return found


def reference() -> set[str]:
    """What Xen's own store held with the same devices."""
    return set((HERE / "reference-xenstore.txt").read_text().splitlines())


def differences(tree: set[str]) -> list[str]:
    """Each node that only one of them has and that docs/differences.md does not list, or lists in vain."""
    text = DIFFERENCES.read_text()
    listed = {who: set(re.findall(rf"^\| {who} \| `(/.*?)` \|", text, re.MULTILINE)) for who in ("Xen", "pyvmm")}
    expected = reference()
    problems = []
    for who, own, other in (("Xen", expected, tree), ("pyvmm", tree, expected)):
        problems += [f"only {who} has {node}" for node in sorted(own - other - listed[who])]
        problems += [f"docs/differences.md says that only {who} has {node}" for node in sorted(listed[who] - (own - other))]
    return problems
