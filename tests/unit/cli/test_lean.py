"""The lean imports of a start: what was left out comes when it is asked for."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys, pathlib; print('urllib.parse' in sys.modules, 'gettext' in sys.modules)", "False False"),
        ("import pathlib; print(pathlib.Path('/a b').as_uri())", "file:///a%20b"),
        ("import gettext; print(gettext.NullTranslations().ngettext('one', 'many', 2))", "many"),
        ("import urllib.parse; print(urllib.parse.quote('a b'))", "a%20b"),
        ("import argparse; print(argparse.ArgumentParser('x').format_usage().strip())", "usage: x [-h]"),
    ],
)
def test_what_is_left_out_comes_when_it_is_asked_for(code: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import vmm.cli.lean; {code}"], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (said, "")
