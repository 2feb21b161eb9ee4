"""Completion scripts in their shells, and the manual page."""

import subprocess
from pathlib import Path

import pytest

from vmm.cli.completion import options_by_command, script

ROOT = Path(__file__).resolve().parents[3]


def completed(*words: str) -> set[str]:
    """What bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    program = (
        f"{script('bash')}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _pyvmm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pyvmm", "at"], {"attach-disk", "attach-net", "attach-share"}),
        (["pyvmm", "run", "--tr"], {"--transport", "--trace", "--trace-file", "--trace-format"}),
        (["pyvmm", "run", "--transport", ""], {"auto", "kvm-xen", "page", "patch"}),
        (["pyvmm", "run", "--trace-format", "p"], {"perfetto"}),
        (["pyvmm", "doctor", "--j"], {"--json"}),
        (["pyvmm", "run", "vmli"], set()),
    ],
)
def test_bash_offers_what_can_be_typed(words: list[str], offered: set[str]) -> None:
    assert completed(*words) == offered


def test_fish_has_a_line_for_every_option() -> None:
    text = script("fish")
    for command, (_, options) in options_by_command().items():
        for option in options:
            assert any(
                f"__fish_seen_subcommand_from {command}'" in line and option.names[-1].lstrip("-") in line
                for line in text.splitlines()
            ), (command, option.names)


def test_zsh_gets_bashs() -> None:
    assert script("zsh").startswith("#compdef pyvmm\n")
    assert "complete -o default -F _pyvmm pyvmm" in script("zsh")


def test_the_manual_page_says_what_the_command_line_says() -> None:
    from scripts.manual import manual

    assert (ROOT / "docs/pyvmm.1").read_text() == manual(), "run scripts/manpage"


def test_groff_finds_nothing_wrong_in_the_manual_page() -> None:
    try:
        done = subprocess.run(["groff", "-man", "-ww", "-z", ROOT / "docs/pyvmm.1"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("groff is not installed (Debian: groff-base)")
    assert (done.returncode, done.stderr) == (0, "")
