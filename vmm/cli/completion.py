"""Completion scripts for shells, made from the parser: each command's options, the choices of each, files elsewhere."""

import argparse
from typing import NamedTuple

from vmm.cli.arguments import Parser, make_parser


class Offered(NamedTuple):
    """One option: its spellings, what it takes, and what it is for."""

    names: tuple[str, ...]
    choices: tuple[str, ...]
    takes_value: bool
    help: str


def options_by_command() -> dict[str, tuple[str, list[Offered]]]:
    """What each command is for, and its options."""
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    meanings = {action.dest: action.help or "" for action in commands._choices_actions}
    return {name: (meanings.get(name, ""), _options(command)) for name, command in commands.choices.items()}


def _options(parser: Parser) -> list[Offered]:
    return [
        Offered(
            tuple(action.option_strings),
            tuple(map(str, action.choices or ())),
            action.nargs != 0,
            (action.help or "").replace("%%", "%"),
        )
        for action in parser._actions
        if action.option_strings
    ]


def script(shell: str) -> str:
    """The script for `bash`, `zsh` or `fish`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


_BASH = """_pyvmm() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "$command $before" in
{values}
    esac
    case "$command" in
        {control})
            if [ "$COMP_CWORD" = 2 ]; then
                local names=$(pyvmm list --json 2>/dev/null | grep -o '"name": "[^"]*"' | cut -d'"' -f4)
                COMPREPLY=($(compgen -W "$names" -- "$word"))
                return
            fi ;;
    esac
    if [[ $word == -* ]]; then
        case "$command" in
{options}
        esac
    fi
}}
complete -o default -F _pyvmm pyvmm
"""


def _bash() -> str:
    found = options_by_command()
    values, options = [], []
    for command, (_, own) in found.items():
        options.append(f'            {command}) COMPREPLY=($(compgen -W "{_names(own)}" -- "$word")) ;;')
        for option in own:
            if option.choices:
                patterns = "|".join(f'"{command} {name}"' for name in option.names)
                words = " ".join(option.choices)
                values.append(f'        {patterns}) COMPREPLY=($(compgen -W "{words}" -- "$word")); return ;;')
    control = "|".join(name for name in found if name not in ("run", "doctor", "xenstore", "list", "completion"))
    return _BASH.format(commands=" ".join(found), values="\n".join(values), options="\n".join(options), control=control)


def _names(options: list[Offered]) -> str:
    return " ".join(name for option in options for name in option.names)


def _zsh() -> str:
    return "#compdef pyvmm\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()


def _fish() -> str:
    lines = ["complete -c pyvmm -n __fish_use_subcommand -f"]
    for command, (meaning, own) in options_by_command().items():
        lines.append(f"complete -c pyvmm -n __fish_use_subcommand -f -a {command} -d {_quoted(meaning)}")
        for option in own:
            words = [f"complete -c pyvmm -n '__fish_seen_subcommand_from {command}'"]
            words += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
            if option.choices:
                words.append(f"-x -a {_quoted(' '.join(option.choices))}")
            elif option.takes_value:
                words.append("-r")
            lines.append(" ".join([*words, f"-d {_quoted(option.help)}"]))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
