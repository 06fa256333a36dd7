"""hpcimg hooks: Slurm's hooks for the installation that runs this, such as one made by pip."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import stat
import sys

from hpcimg import atomic
from hpcimg.cli import output
from hpcimg.errors import Bug, NodeError

HELP = """write Slurm's hooks for this Python and this installation of hpcimg

For installations with pip. The packages and `make install` have hooks of their
own. Run it again after an upgrade, and after a change of Python."""

_HOOKS = {
    "Prolog": "prolog/hpcimg-prolog",
    "TaskProlog": "prolog/hpcimg-task-prolog",
    "Epilog": "epilog/hpcimg-epilog",
}
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A hook searches for these, in the tree that it is in; pip does not install one around it.
_ASSIGNED = re.compile(r"(?:\[ .* \] \|\| )?(self|root|task_prolog|python)=")
_FIXED = "cd / || exit 0  # the paths below were written by `hpcimg hooks`\n"
_SEARCHES = re.compile(r"\$\{?(?:0|self|PWD)\b|\$\{?root\}?/|find-python")


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
            text = _read(_HOOKS[name])
            if name != "TaskProlog":
                text = written(text, python=python, task_prolog=paths["TaskProlog"])
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


def written(hook: str, *, python: str, task_prolog: str) -> str:
    """Return a hook's text with fixed paths in place of those that it searches for.

    Raises Bug if it would still search.
    """
    root = os.path.dirname(_PACKAGE)
    fixed = {"root": root, "task_prolog": task_prolog, "python": python}
    lines = []
    for line in hook.splitlines(keepends=True):
        if assigned := _ASSIGNED.match(line):
            value = fixed.pop(assigned[1], None)
            lines += [] if value is None else [f"{assigned[1]}={shlex.quote(value)}\n"]
        else:
            lines.append(_FIXED if line.startswith("cd ") else line)
    text = "".join(lines)
    if fixed or _SEARCHES.search(text):
        raise Bug("the hooks of this release cannot be written", why="they search for other files")
    return text


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
