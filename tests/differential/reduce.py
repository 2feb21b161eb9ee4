"""A program that shows a difference, cut down to the fewest calls that still do."""

from collections.abc import Sequence

from tests.differential.answers import Named, groups_of
from tests.differential.carry import Side, carry_out
from tests.differential.compare import Difference, differences
from tests.differential.generate import program


def reduce(xen: Side, ours: Side, named: Named, kind: str) -> tuple[Named, list[str], Difference | None]:
    """The smallest found whose last difference is of that kind of call, Xen's answer to it, and the difference.

    None where the difference does not come again in a guest of its own: it needs what ran before.
    """
    kept = named.groups or tuple(range(len(groups_of(program(named.number, named.seed, named.length)))))
    best = _differs(xen, ours, named, [kept], kind)
    if best is None:
        return named, [], None
    size = max(len(kept) // 2, 1)
    while True:
        candidates = [kept[:at] + kept[at + size :] for at in range(0, len(kept), size) if len(kept) > size]
        found = _differs(xen, ours, named, candidates, kind)
        if found is not None:
            best, kept = found, found[0]
        elif size > 1:
            size //= 2
        else:
            return named._replace(groups=kept), best[1], best[2]


def _differs(
    xen: Side, ours: Side, named: Named, candidates: Sequence[tuple[int, ...]], kind: str
) -> tuple[tuple[int, ...], list[str], Difference] | None:
    """The first of the candidates that still shows it, all tried in one guest."""
    if not candidates:
        return None
    programs = [named._replace(groups=groups).made(index) for index, groups in enumerate(candidates)]
    theirs, mine = carry_out(xen, programs), carry_out(ours, programs)
    for difference in differences(programs, theirs, mine):
        if difference.name.partition("(")[0] == kind:
            return candidates[difference.program], theirs[difference.program], difference
    return None
