"""The settings in slurm.conf, from slurmctld or else from the file."""

from __future__ import annotations

import glob
import os
import re

from hpcimg.errors import HpcimgError, Unreachable
from hpcimg.slurm import query

DEFAULT_FILE = "/etc/slurm/slurm.conf"
# `TaskProlog[0]           = /path`: a key that may appear several times is numbered.
_SHOWN = re.compile(r"(\w+)(?:\[\d+\])?\s+= (.*)")
_SET = re.compile(r"(\w+)\s*=\s*(.*)")
_DEPTH_MAX = 8  # of nested includes


class Settings:
    """Settings by name, case-insensitively; each may appear several times."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        self._found = [(name.lower(), value.strip()) for name, value in found]

    def all(self, name: str) -> list[str]:
        """Return the values of a setting, none if it is not set."""
        return [v for n, v in self._found if n == name.lower() and v not in ("", "(null)")]

    def one(self, name: str) -> str:
        """Return the value of a setting, "" if it is not set."""
        return ([*self.all(name)] or [""])[-1]

    def seconds(self, name: str) -> float | None:
        """Return a timeout such as `600 sec`, None if there is no limit."""
        number = re.match(r"\d+", self.one(name))
        # 65534 and 4294967294 mean that it is not set.
        if number is None or int(number[0]) in (0, 0xFFFE, 0xFFFFFFFE):
            return None
        return float(number[0])


def settings() -> Settings:
    """Return the settings from slurmctld, or from the file if it does not answer.

    Raises Unreachable, MissingTool if neither is available.
    """
    try:
        done = query.run(["scontrol", "show", "config"])
        if done.returncode:
            raise Unreachable("slurmctld cannot be reached", why=query.complaint(done.stderr))
        return Settings(_SHOWN.findall(done.stdout))
    except HpcimgError:
        path = os.environ.get("SLURM_CONF") or DEFAULT_FILE
        if not os.path.exists(path):
            raise
        return Settings(_read(path))


def _read(path: str, depth: int = 0) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in lines(path):
        if match := re.match(r"include\s+(\S+)", line, re.IGNORECASE):
            inner = os.path.join(os.path.dirname(path), match[1])
            if depth < _DEPTH_MAX:
                found += _read(inner, depth + 1)
        elif match := _SET.match(line):
            found.append((match[1], match[2]))
    return found


def lines(path: str) -> list[str]:
    """Return the lines of a Slurm file without comments, with continued ones joined."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return []
    joined = text.replace("\\\n", " ")
    bare = (re.sub(r"(?<!\\)#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in bare if line]


def plugins(path: str, depth: int = 0) -> list[str]:
    """Return the lines of a plugstack.conf and of the files that it includes."""
    found: list[str] = []
    for line in lines(path):
        words = line.split()
        if words[0].lower() == "include" and len(words) > 1 and depth < _DEPTH_MAX:
            pattern = os.path.join(os.path.dirname(path), words[1])
            for inner in sorted(glob.glob(pattern)):
                found += plugins(inner, depth + 1)
        else:
            found.append(line)
    return found
