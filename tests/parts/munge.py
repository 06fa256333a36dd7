"""A separate munged with its own key and socket."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path
from typing import Self

from tests.parts.daemon import Daemon, missing_commands, wait_until

MUNGE_USER = "munge"


class Munge:
    """One munged below a directory that every account may enter. A context manager.

    `socket` is what munge and unmunge are given by --socket.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "munge"
        self.socket = self._directory / "socket"

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for it, or an empty string."""
        if os.geteuid() != 0:
            return "munged is started as its own account, which takes root"
        try:
            pwd.getpwnam(MUNGE_USER)
        except KeyError:
            return f"no account {MUNGE_USER} here (run tests/install-packages as root)"
        return missing_commands("munged", "munge", "unmunge", "setpriv")

    def __enter__(self) -> Self:
        self._directory.mkdir()
        self._directory.chmod(0o755)
        shutil.chown(self._directory, MUNGE_USER)
        key = self._directory / "key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(128))
        shutil.chown(key, MUNGE_USER)
        files = [
            f"--{name}-file={self._directory}/{name}" for name in ("key", "pid", "seed", "log")
        ]
        self._daemon = Daemon(
            ["munged", "--foreground", *files, f"--socket={self.socket}"],
            output=self._directory / "output",
            user=MUNGE_USER,
        )
        (self._directory / "output").touch()
        self._daemon.start()
        try:
            wait_until(self._is_there, what="munged")
        except BaseException:
            self._daemon.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()

    def _is_there(self) -> bool:
        self._daemon.expect_running()
        return self.socket.exists()
