"""Imports that are put off: a module that was imported meanwhile works, and nobody else sees a stand-in."""

import subprocess
import sys
from pathlib import Path

import pytest

USER = """
import colorsys
from keyword import iskeyword


def grey():
    return colorsys.rgb_to_yiq(0, 0, 0)[0]
"""


@pytest.fixture
def said(tmp_path: Path) -> str:
    """What a fresh interpreter prints, for `user` was imported with two modules put off."""
    (tmp_path / "user.py").write_text(USER)
    program = """
import sys
from vmm.host.lazily import lazily
with lazily("colorsys", "keyword"):
    import user
print("colorsys" in sys.modules, user.iskeyword("with"), "keyword" in sys.modules)
print(user.grey(), sys.modules["colorsys"].__file__ is not None)
import colorsys
print(colorsys is user.colorsys, colorsys.rgb_to_yiq is user.colorsys.rgb_to_yiq)
try:
    user.colorsys.nothing_like_this
except AttributeError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": f"{tmp_path}:{root}"}, cwd=tmp_path
    )
    return done.stdout


def test_a_module_is_loaded_at_its_first_use_and_real_for_all_others(said: str) -> None:
    assert said.splitlines() == [
        "False True True",
        "0.0 True",
        "False True",
        "module 'colorsys' has no attribute 'nothing_like_this'",
    ]


def test_pyelftools_brings_no_debugger_along() -> None:
    program = "import sys, vmm.boot.elf; print([name for name in ('pdb', 'inspect', 'dataclasses') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
