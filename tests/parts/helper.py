"""A node's helper, started by systemd's socket activation, and processes in jobs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.parts.daemon import Daemon, missing_commands, wait_until
from tests.parts.node import ROOT

HELPER = ROOT / "bin" / "hpcimg-helper"
_HIERARCHIES = {"v1": Path("/sys/fs/cgroup/freezer"), "v2": Path("/sys/fs/cgroup/unified")}
# Only the first exists on a host with cgroup v2 alone.
if Path("/sys/fs/cgroup/cgroup.controllers").exists():
    _HIERARCHIES = {"v2": Path("/sys/fs/cgroup")}


class Helper:
    """systemd-socket-activate, which starts a helper for each connection as hpcimg.socket does.

    A context manager. `socket` is the path, `env` what the helpers get in their environment,
    `under` a command that becomes the helper.
    """

    def __init__(self, state: Path, env: Mapping[str, str], *, under: Sequence[str] = ()) -> None:
        self.socket = state / "socket"
        self._daemon = Daemon(
            [
                "systemd-socket-activate", "--accept", "--inetd", f"--listen={self.socket}",
                *(f"--setenv={name}={value}" for name, value in env.items()), *under, str(HELPER),
            ],
            output=Path(f"{state}.helper.log"),
        )  # fmt: skip

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks, or an empty string."""
        if os.geteuid() != 0:
            return "needs root, to act for several users"
        return missing_commands("systemd-socket-activate", "setpriv")

    def __enter__(self) -> Helper:
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self.socket.parent.chmod(0o755)
        self._daemon.start()
        wait_until(self.socket.exists, what="the helper's socket")
        self.socket.chmod(0o666)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()
        self.socket.unlink(missing_ok=True)


class Jobs:
    """Cgroups as Slurm makes them for its jobs, and processes in them."""

    def __init__(self, version: str) -> None:
        self._version = version
        # Several test runs share a host.
        self._node = f"test{os.getpid()}"
        self._made: list[Path] = []

    @staticmethod
    def missing(version: str) -> str:
        """Return a sentence that says what this host lacks, or an empty string."""
        top = _HIERARCHIES.get(version)
        if top is None or not (top / "cgroup.procs").exists() or not os.access(top, os.W_OK):
            return f"no cgroup {version} that can be written to"
        return ""

    def directory(self, job: int | str, uid: int, *below: str) -> Path:
        """Return the cgroup of a job's step, or one that its user has made in it."""
        top = _HIERARCHIES[self._version]
        if self._version == "v1":
            path = top / f"slurm_{self._node}" / f"uid_{uid}" / f"job_{job}" / "step_0"
        else:
            path = top / "system.slice" / f"{self._node}_slurmstepd.scope" / f"job_{job}" / "step_0"
        path = path.joinpath(*below)
        for parent in (*reversed(path.parents), path):
            with contextlib.suppress(FileExistsError):
                parent.mkdir()
                self._made.append(parent)
        return path

    def remove(self) -> None:
        """Remove all of them; what ran in them has ended."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # others are in the directory that all share
                path.rmdir()


@contextmanager
def jobs(version: str) -> Iterator[Jobs]:
    """Give cgroups for jobs; remove them afterwards."""
    made = Jobs(version)
    try:
        yield made
    finally:
        made.remove()


def within(cgroup: Path | None, uid: int, argv: list[str]) -> list[str]:
    """Return the command that becomes argv as a user, in a cgroup if one is given."""
    command = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", *argv]
    if cgroup is None:
        return command
    return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
