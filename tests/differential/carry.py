"""Many programs carried out by Xen or by pyvmm: a guest that dies is followed by another, which goes on behind it."""

import sys
from collections.abc import Sequence
from typing import Protocol

from tests.differential.compare import DIED
from tests.differential.generate import SET_UP
from tests.differential.programs import Program, decode, encode

BATCH = 100
"""Programs to a guest.  Not all that one does to it can be undone: what its pages number, above all."""


class Side(Protocol):
    """Xen, or pyvmm."""

    errors: str
    """How the last guest ended, where not by powering off."""

    def run(self, module: bytes) -> str:
        """What a guest with these programs prints, until it ends."""


def carry_out(side: Side, programs: Sequence[Program]) -> dict[int, list[str]]:
    """The lines of each program by its number; the last one of a program that killed its guest is `DIED`."""
    results: dict[int, list[str]] = {}
    left = list(programs)
    while left:
        printed = decode(side.run(encode([SET_UP, *left])))
        done = 0
        for program in left:
            lines = printed.get(program.number)
            if lines is None or len(lines) < len(program.names):
                break
            results[program.number] = lines
            done += 1
        if done < len(left):
            results[left[done].number] = [*printed.get(left[done].number, []), DIED]
            print(f"program {left[done].number} ended its guest under {side}: {side.errors.strip()}", file=sys.stderr)
            done += 1
        left = left[done:]
    return results
