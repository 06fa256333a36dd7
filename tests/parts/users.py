"""Users with home directories, without accounts on this host, and a node that knows them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.parts.daemon import missing_commands
from tests.parts.node import PROLOG, Node

# In a mount namespace of its own: nobody else sees the other /etc/passwd. Not a mount on that file
# alone: useradd replaces it, and the kernel would take the mount away.
_WITH_USERS = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"'


class Homes:
    """Homes of `users`, uids by name, below a directory, and the list of accounts that names them.

    Needs root. `etc` is a directory with that list: passwd, with these users added, or changed.
    """

    def __init__(self, directory: Path, users: Mapping[str, int]) -> None:
        """Make the homes, empty and for their users alone, and the list."""
        self.users = dict(users)
        self._directory = directory
        given = Path("/etc/passwd").read_text().splitlines()
        lines = [line for line in given if line.partition(":")[0] not in users]
        for name, uid in users.items():
            lines.append(f"{name}:x:{uid}:{uid}::{self.home(name)}:/bin/sh")
            self.home(name).mkdir(mode=0o700)
            os.chown(self.home(name), uid, uid)
        self.etc = directory / "etc"
        self.etc.mkdir()
        self.etc.chmod(0o755)
        accounts = self.etc / "passwd"
        accounts.write_text("\n".join(lines) + "\n")
        accounts.chmod(0o644)

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks, or an empty string."""
        if os.geteuid() != 0:
            return "needs root, to act for several users"
        if missing := missing_commands("unshare", "mount"):
            return missing
        tried = subprocess.run(
            among_users(Path("/usr"), ["true"]), capture_output=True, check=False
        )
        return "no overlay in a mount namespace can be made here" if tried.returncode else ""

    def home(self, name: str) -> Path:
        """Return the home of a user."""
        return self._directory / f"home-{name}"

    def keep(self, name: str, path: str, text: str) -> None:
        """Write a file in a user's home, for that user alone."""
        file = self.home(name) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o600)
        for made in (file, *file.relative_to(self.home(name)).parents):
            os.chown(self.home(name) / made, self.users[name], self.users[name])


def among_users(etc: Path, argv: list[str]) -> list[str]:
    """Return the command that runs `argv` with the files of this directory in /etc."""
    private = ["unshare", "--mount", "--propagation", "private"]
    return [*private, "sh", "-c", _WITH_USERS, str(etc), *argv]


class NodeWithUsers(Node):
    """A node whose Prolog knows `users`, uids by name, with homes below the directory.

    Needs root. `uid` says whose the jobs are.
    """

    def __init__(self, directory: Path, users: Mapping[str, int]) -> None:
        """Make the homes, and the list of accounts."""
        super().__init__(directory, uid=next(iter(users.values())))
        self._homes = Homes(directory, users)
        self.home, self.keep = self._homes.home, self._homes.keep

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks, or an empty string."""
        return Homes.missing()

    def start_prolog(self, job: int | str, comment: str | None) -> subprocess.Popen[str]:
        """Start Prolog in a mount namespace where the node's users exist."""
        return subprocess.Popen(
            among_users(self._homes.etc, [str(PROLOG)]),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self.environment(job, comment)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
