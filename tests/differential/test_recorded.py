"""pyvmm answers programs of hypercalls as real Xen has: its answers are in `answers`, and Xen is not started.

Each file was made by the command in its first line.
"""

from pathlib import Path

import pytest

from tests.differential.answers import digest, read
from tests.differential.carry import BATCH, carry_out
from tests.differential.compare import differences
from tests.differential.ours import Ours, build_guest
from vmm.kvm import System

ANSWERS = sorted((Path(__file__).parent / "answers").glob("*.txt"))


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.stem)
def test_programs_get_xens_answers(path: Path, system: System, tmp_path: Path) -> None:
    told, answers = read(path)
    programs = [answer.named.made(index) for index, answer in enumerate(answers)]
    assert digest(programs) == told, f"the programs have changed since: make {path.name} again, as its first line says"
    ours = Ours(build_guest(tmp_path))
    xen = {index: answer.lines for index, answer in enumerate(answers)}
    mine: dict[int, list[str]] = {}
    for first in range(0, len(programs), BATCH):
        mine |= carry_out(ours, programs[first : first + BATCH])
    found = list(differences(programs, xen, mine))
    assert not found, "\n".join(f"{one.name}\n  Xen:   {one.xen}\n  pyvmm: {one.ours}" for one in found)
