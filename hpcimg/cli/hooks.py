"""hpcimg hooks: Slurm's hooks for the installation that runs this, such as one made by pip."""

from __future__ import annotations

import argparse
import os
import shlex
import stat
import sys

from hpcimg import atomic
from hpcimg.cli import output
from hpcimg.errors import NodeError

HELP = """write Slurm's hooks for this Python and this installation of hpcimg

For installations with pip. The packages and `make install` have hooks of their
own. Run it again after an upgrade, and after a change of Python."""

_HOOKS = {
    "Prolog": "prolog/hpcimg-prolog",
    "TaskProlog": "prolog/hpcimg-task-prolog",
    "Epilog": "epilog/hpcimg-epilog",
}
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The lines with which a hook finds its tree; pip does not install one around it.
_BEGIN, _END = "# The tree that this file is in.", "start="


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIRECTORY", help="the directory to write to; created if necessary"
    )


def run(args: argparse.Namespace) -> int:
    directory = os.path.abspath(args.directory)
    python = os.path.abspath(sys.executable)
    for path in (python, os.path.realpath(python), _PACKAGE):
        _check(path)
    paths = {name: f"{directory}/{os.path.basename(hook)}" for name, hook in _HOOKS.items()}
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        for name, path in paths.items():
            text = written(_read(_HOOKS[name]), python, paths["TaskProlog"])
            atomic.write_file(path, text, mode=0o755)
    except OSError as error:
        raise NodeError(
            f"the hooks cannot be written to {directory}", why=error.strerror or str(error)
        ) from error
    if args.json:
        output.print_json({"hooks": paths})
    else:
        for name, path in paths.items():
            print(f"{name}={path}")
    return 0


def written(hook: str, python: str, task_prolog: str) -> str:
    """Return a hook's text with fixed paths in place of those that it searches for."""
    before, begins, rest = hook.partition(_BEGIN)
    _, ends, after = rest.partition(_END)
    if not begins:
        return hook
    lines = {"root": os.path.dirname(_PACKAGE), "task_prolog": task_prolog, "python": python}
    fixed = "".join(f"{name}={shlex.quote(value)}\n" for name, value in lines.items())
    return f"{before}# Written by `hpcimg hooks`.\n{fixed}cd / || exit 0\n{ends}{after}"


def _read(hook: str) -> str:
    """Return the text of a hook: from the package as pip installs it, else from its tree."""
    shipped = f"{_PACKAGE}/share/{hook}"
    path = shipped if os.path.exists(shipped) else f"{os.path.dirname(_PACKAGE)}/{hook}"
    with open(path, encoding="utf-8") as file:
        return file.read()


def _check(path: str) -> None:
    """Raise NodeError if somebody else could change what root will run."""
    part = path
    while True:
        seen = os.stat(part)
        why = ""
        if seen.st_uid not in (0, os.geteuid()):
            why = f"{part} belongs to uid {seen.st_uid}, and root would run what that user writes"
        elif seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
            why = f"all users can write to {part}, and root would run what they write"
        if why:
            raise NodeError(
                f"no hooks are written for {path}",
                why=why,
                do="Install hpcimg as root, in a virtual environment below a directory like /opt.",
            )
        if part == "/":
            return
        part = os.path.dirname(part)
