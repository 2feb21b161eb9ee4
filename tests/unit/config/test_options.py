"""The table of options: one row is all that a new option takes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmm
from vmm.cli.arguments import make_parser, parse_domu
from vmm.cli.completion import script
from vmm.config import options
from vmm.config.domain import DomainConfig
from vmm.config.options import OPTIONS, For, Of, Option, Sets, Takes, collect, from_keywords, keywords, refuse
from vmm.errors import UsageError

FAKE = Option(
    ("--frobnicate",), "how much to frobnicate the guest", Takes.TEXT,
    (Sets(Of.DOMAIN, "command_line", lambda text: f"frobnicate={text}"),), default="not", metavar="HOW",
    use=frozenset(For),
)  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more row, and nothing else."""
    monkeypatch.setattr(options, "OPTIONS", [*OPTIONS, FAKE])
    monkeypatch.setattr("vmm.cli.arguments.OPTIONS", options.OPTIONS)
    yield


def test_a_row_is_an_option_of_the_command_line(fake: None) -> None:
    given = vars(make_parser("run").parse_args(["run", "image", "--frobnicate", "much"]))
    assert collect(given, Of.DOMAIN, For.RUN)["command_line"] == "frobnicate=much"
    assert "how much to frobnicate" in make_parser("run")._actions[-1].choices["run"].format_help()  # type: ignore[index,union-attr]


def test_a_row_is_completed_by_every_shell(fake: None) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "frobnicate" in script(shell)


def test_a_row_is_in_the_manual_page(fake: None) -> None:
    from scripts.manual import manual

    assert r"\fB\-\-frobnicate\fR \fIHOW\fR" in manual()


def test_a_row_is_an_argument_of_a_scripts_guest(fake: None, tmp_path: Path) -> None:
    assert "frobnicate" in keywords()
    values = {"image": tmp_path, **from_keywords({"frobnicate": "a bit"})}
    assert collect(values, Of.DOMAIN, For.RUN)["command_line"] == "frobnicate=a bit"
    with pytest.raises(TypeError, match=r"no argument frobnicated; it has append, .*frobnicate"):
        vmm.Guest(tmp_path, frobnicated=1)


def test_a_row_is_understood_in_the_file_of_a_guest_beside_a_dom0(fake: None) -> None:
    given = parse_domu(["image", "--frobnicate", "more"])
    assert collect(given, Of.DOMAIN, For.DOMU)["command_line"] == "frobnicate=more"


def test_every_row_sets_what_there_is_to_set() -> None:
    fields = {Of.DOMAIN: set(DomainConfig._fields)}
    for option in OPTIONS:
        assert option.help
        assert option.name.isidentifier()
        for sets in option.sets:
            assert sets.field in fields.get(sets.of, {sets.field})
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.flags], ids=lambda option: option.name)
def test_what_a_guest_beside_a_dom0_cannot_have_is_refused_with_a_sentence(option: Option) -> None:
    if For.DOMU in option.use:
        refuse([option.flags[-1]], For.DOMU, "a guest beside a dom0")
        return
    for word in (option.flags[-1], f"{option.flags[-1]}=x"):
        with pytest.raises(UsageError, match=f"^{option.flags[-1]} is not for a guest beside a dom0; leave it out$"):
            refuse(["image", word], For.DOMU, "a guest beside a dom0")


def test_arguments_of_a_scripts_guest_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    for values, reason in (
        ({"transport": "magic"}, "--transport takes auto"),
        ({"memory": "much"}, "is not a size"),
        ({"modules": tmp_path}, "has no folder `kernel`"),
    ):
        with pytest.raises(UsageError, match=reason):
            vmm.Guest(tmp_path, **values)
    assert collect(from_keywords({"kvm_xen": False}), Of.DOMAIN, For.GUEST)["kvm_xen"] is False


def test_the_word_behind_a_lonely_trace_is_the_image() -> None:
    assert vars(make_parser("run").parse_args(["run", "--trace", "image"]))["trace"] == ""
    assert vars(make_parser("run").parse_args(["run", "--trace=all", "image"]))["trace"] == "all"
    assert vars(make_parser("xenstore").parse_args(["xenstore", "write", "/a", "--", "--trace"]))["paths"] == [
        "/a",
        "--trace",
    ]


def test_python_m_vmm_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vmm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pyvmm ")
