"""Xen's answers to programs, kept in a file: which programs they are, and what each printed.

    # by scripts/diff-xen ..., Xen 4.17, programs 0123456789abcdef
    = SEED NUMBER LENGTH [GROUP...]
    what it printed, a result a line

A group is a call with what makes it ready, by its place in the program; with none named, all of them are meant.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.differential.generate import CLEAN, program
from tests.differential.programs import Program, Step, encode


class Named(NamedTuple):
    """A program by what it is made from."""

    seed: int
    number: int
    length: int
    groups: tuple[int, ...] = ()

    def made(self, number: int) -> Program:
        """The program, under another number."""
        whole = program(self.number, self.seed, self.length)
        if not self.groups:
            return whole._replace(number=number)
        parts = groups_of(whole)
        return Program(number, (*CLEAN, *(step for index in self.groups for step in parts[index])))


class Answer(NamedTuple):
    """A program, and what it printed."""

    named: Named
    lines: list[str]


def groups_of(whole: Program) -> list[list[Step]]:
    """A program's steps behind what cleans up: each one that prints, with the silent ones before it."""
    found: list[list[Step]] = [[]]
    for step in whole.steps[len(CLEAN) :]:
        found[-1].append(step)
        if step.name:
            found.append([])
    return [group for group in found if group]


def digest(programs: Iterable[Program]) -> str:
    """What tells whether a file's answers are still those to these programs."""
    return hashlib.sha256(encode(programs)).hexdigest()[:16]


def write(path: Path, how: str, answers: list[Answer]) -> None:
    """Keep them; `how` they were had goes into the first line."""
    made = [answer.named.made(index) for index, answer in enumerate(answers)]
    lines = [f"# by {how}, programs {digest(made)}"]
    for answer in answers:
        lines.append(f"= {' '.join(map(str, (*answer.named[:3], *answer.named.groups)))}")
        lines += answer.lines
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read(path: Path) -> tuple[str, list[Answer]]:
    """The digest of the programs that the answers were to, and the answers."""
    first, *lines = path.read_text().splitlines()
    answers: list[Answer] = []
    for line in lines:
        if line.startswith("= "):
            seed, number, length, *groups = map(int, line[2:].split())
            answers.append(Answer(Named(seed, number, length, tuple(groups)), []))
        else:
            answers[-1].lines.append(line)
    return first.rpartition(" ")[2], answers
