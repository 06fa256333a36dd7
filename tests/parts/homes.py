"""Homes for accounts of this host, where what is run through here finds them, and nobody else."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

from tests.parts.users import NodeWithUsers

_FILES = ("passwd", "group", "nsswitch.conf", "hosts")
# All of the folder: a mount on the one file ends when the host gets another account.
_ENTER = 'mount --bind "$0" /etc && exec "$@"'


class Homes:
    """A home below a folder for each of some users. Needs root."""

    def __init__(self, folder: Path, users: Collection[str]) -> None:
        """Make the homes, and the list of accounts that names them."""
        self._folder = folder
        self._etc = folder / "etc"
        self._etc.mkdir(parents=True)
        folder.chmod(0o755)
        for name in _FILES:
            shutil.copy(f"/etc/{name}", self._etc)
        lines = (self._etc / "passwd").read_text().splitlines()
        for number, line in enumerate(lines):
            fields = line.split(":")
            if fields[0] in users:
                home = self.of(fields[0])
                home.mkdir(mode=0o700)
                os.chown(home, int(fields[2]), int(fields[3]))
                lines[number] = ":".join([*fields[:5], str(home), fields[6]])
        (self._etc / "passwd").write_text("\n".join(lines) + "\n")

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks, or an empty string."""
        return NodeWithUsers.missing()

    def of(self, user: str) -> Path:
        """Return the home of a user."""
        return self._folder / user

    def keep(self, user: str, name: str, text: str) -> None:
        """Write a file in a user's home, for that user alone."""
        account = pwd.getpwnam(user)
        file = self.of(user) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o600)
        for path in (file, *file.parents):
            if self.of(user) in path.parents:
                os.chown(path, account.pw_uid, account.pw_gid)

    def program(self, target: Path) -> Path:
        """Write a program that becomes the target, with these homes; return its path."""
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER]
        path = self._folder / f"{target.name}-with-homes"
        words = shlex.join([*argv, str(self._etc), str(target)])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)
        return path
