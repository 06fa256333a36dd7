"""A node with one more account than its host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.parts.daemon import PATH
from tests.parts.node import PROLOG, Node


class NodeWithAccount(Node):
    """A node whose accounts include one more, with a home directory; the host's stay as they are.

    Needs root. The account is that of the node's jobs.
    """

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        super().__init__(directory, uid=54321)
        self.home.mkdir()
        os.chown(self.home, self.uid, self.uid)
        # All of the directory: a mount on the one file ends when the host gets another account.
        self._etc = directory / "etc"
        self._etc.mkdir()
        for name in ("passwd", "group", "nsswitch.conf", "hosts"):
            shutil.copy(f"/etc/{name}", self._etc)
        with (self._etc / "passwd").open("a") as file:
            file.write(f"hpcjob:x:54321:54321::{self.home}:/bin/sh\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file below the home directory that only its user may read."""
        file = self.home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o400)
        for path in (file, *file.parents):
            if self.home in path.parents:
                os.chown(path, self.uid, self.uid)
        return file

    def start_prolog(self, job: int | str, comment: str | None) -> subprocess.Popen[str]:
        """Start Prolog in a mount namespace where the account exists."""
        script = 'mount --bind "$1" /etc && exec "$2"'
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", str(self._etc), str(PROLOG)],
            # Anybody may set $HOME to anything.
            env={**self.environment(job, comment), "HOME": "/nonexistent", "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
