"""hpcimg completion: shell scripts that complete hpcimg's commands and options.

Generated from the argument parser, so that new commands and options are included.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from hpcimg.cli import output

HELP = """print a script that completes hpcimg's commands and options in bash, zsh or fish

The packages and `make install` install it where each shell looks for it."""

# Arguments for which files are offered; others without choices get nothing.
_FILES = frozenset({"DIRECTORY", "FILE", "PATH", "URI"})


class Argument(NamedTuple):
    """An option with its names, or a positional argument without names."""

    names: tuple[str, ...]
    about: str
    value: str  # the name of its value, "" if an option takes none
    choices: tuple[str, ...]

    @property
    def files(self) -> bool:
        return self.value in _FILES


class Command(NamedTuple):
    """A subcommand and its arguments."""

    name: str
    about: str
    arguments: tuple[Argument, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(_WRITERS), help="the shell")


def run(args: argparse.Namespace) -> int:
    text = _WRITERS[args.shell](*read(args.parser))
    if args.json:
        output.print_json({"shell": args.shell, "script": text})
    else:
        print(text, end="")
    return 0


def read(parser: argparse.ArgumentParser) -> tuple[tuple[Argument, ...], list[Command]]:
    """Return the options of the program itself, and its subcommands."""
    commands: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            abouts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands += [
                Command(name, abouts.get(name, ""), tuple(_arguments(sub)))
                for name, sub in action.choices.items()
            ]
    return tuple(_arguments(parser)), commands


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        about = (action.help or "") % {**vars(action), "prog": parser.prog}
        metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
        value = "" if action.nargs == 0 else metavar or action.dest.upper()
        choices = tuple(str(choice) for choice in action.choices or ())
        long = [name for name in action.option_strings if name.startswith("--")]
        yield Argument(tuple(long or action.option_strings), about, value, choices)


def _bash(program: tuple[Argument, ...], commands: list[Command]) -> str:
    first = [command.name for command in commands] + [n for a in program for n in a.names]
    lines = [
        "_hpcimg() {",
        '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words= files=',
        "    local command=${COMP_WORDS[1]}",
        '    [ "$COMP_CWORD" -gt 1 ] || command=',
        '    case "$command $before" in',
    ]  # fmt: skip
    for command in commands:
        for argument in command.arguments:
            if argument.names and argument.value:
                names = "|".join(f"'{command.name} {name}'" for name in argument.names)
                lines.append(f"    {names}) {_bash_words(argument.choices, argument.files)} ;;")
    lines += ["    *)", '        case "$command" in', f"        '') {_bash_words(first)} ;;"]
    for command in commands:
        words = [word for a in command.arguments for word in (a.names or a.choices)]
        files = any(a.files and not a.names for a in command.arguments)
        lines.append(f"        {command.name}) {_bash_words(words, files)} ;;")
    return "\n".join([
        *lines,
        "        esac",
        "        ;;",
        "    esac",
        '    [ -z "$files" ] || case "$word" in',
        "    -*) ;;",
        "    *) compopt -o default; COMPREPLY=(); return ;;",
        "    esac",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")',
        "}",
        "complete -F _hpcimg hpcimg",
        "",
    ])  # fmt: skip


def _bash_words(words: list[str] | tuple[str, ...], files: bool = False) -> str:
    return f"words={shlex.quote(' '.join(words))} files={'yes' if files else ''}"


def _zsh(program: tuple[Argument, ...], commands: list[Command]) -> str:
    described = [shlex.quote(f"{c.name}:{c.about}") for c in commands]
    lines = [
        "#compdef hpcimg",
        "_hpcimg() {",
        f"    local -a commands=({' '.join(described)})",
        "    if (( CURRENT == 2 )); then",
        "        _describe -t commands command commands",
        f"        _arguments {' '.join(_zsh_argument(a) for a in program)}",
        "        return",
        "    fi",
        "    local command=$words[2]",
        "    shift words",
        "    (( CURRENT-- ))",
        "    case $command in",
    ]
    for command in commands:
        arguments = " ".join(_zsh_argument(a) for a in command.arguments)
        lines.append(f"    {command.name}) _arguments {arguments} ;;")
    return "\n".join([*lines, "    esac", "}", '_hpcimg "$@"', ""])


def _zsh_argument(argument: Argument) -> str:
    about = "".join(f"\\{c}" if c in "[]:\\" else c for c in argument.about)
    offered = f"({' '.join(argument.choices)})" if argument.choices else ""
    value = f":{argument.value.lower()}:{offered or ('_files' if argument.files else ' ')}"
    if not argument.names:
        return shlex.quote(f"*{value}")
    taken = value if argument.value else ""
    return " ".join(shlex.quote(f"{name}[{about}]{taken}") for name in argument.names)


def _fish(program: tuple[Argument, ...], commands: list[Command]) -> str:
    lines = ["complete -c hpcimg -f"]
    lines += [_fish_argument(a, "__fish_use_subcommand") for a in program]
    for command in commands:
        about = _fish_quoted(command.about)
        lines.append(f"complete -c hpcimg -n __fish_use_subcommand -a {command.name} -d {about}")
        seen = _fish_quoted(f"__fish_seen_subcommand_from {command.name}")
        lines += [_fish_argument(a, seen) for a in command.arguments]
    return "\n".join([*lines, ""])


def _fish_argument(argument: Argument, where: str) -> str:
    words = ["complete", "-c", "hpcimg", "-n", where]
    for name in argument.names:
        words += ["-l", name[2:]] if name.startswith("--") else ["-s", name[1:]]
    if argument.value and argument.names:
        words.append("-r")
    if argument.choices:
        words += ["-a", _fish_quoted(" ".join(argument.choices))]
    if argument.files:
        words.append("-F")
    return " ".join([*words, "-d", _fish_quoted(argument.about)])


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_WRITERS = {"bash": _bash, "fish": _fish, "zsh": _zsh}
