"""A throwaway Slurm cluster on this host: real daemons, real jobs, nothing left behind."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.parts.daemon import PATH, Daemon, free_ports, listens, missing_commands, wait_until
from tests.parts.lab import Lab
from tests.parts.munge import MUNGE_USER
from tests.parts.node import EPILOG, PROLOG, TASK_PROLOG
from tests.parts.processes import descendants, kill_processes
from tests.parts.slurmclient import USERS, SlurmClient
from tests.parts.slurmconf import SLURM_USER, slurm_conf
from tests.parts.users import among_users

_COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "salloc", "scontrol", "setpriv")
_START_TIMEOUT_S = 60
# The setting that a plugin in Lua needs, by the name of its file.
_PLUGINS = {
    "cli_filter.lua": {"CliFilterPlugins": "lua"},
    "job_submit.lua": {"JobSubmitPlugins": "lua"},
    "burst_buffer.lua": {"BurstBufferType": "burst_buffer/lua"},
}


class Hooks(NamedTuple):
    """The paths of a cluster's hooks, "" for none."""

    prolog: Path | str = ""
    task_prolog: Path | str = ""
    epilog: Path | str = ""


_NO_HOOKS = Hooks()


class Cluster(SlurmClient):
    """One slurmctld, a munged of its own and nodes named n1, n2, ..., all below one directory.

    A context manager. Attributes for tests: directory, conf (the slurm.conf), nodes, and work, the
    directory where commands run, so that jobs' output files are there. Two clusters can run side by
    side: ports are chosen at start, and nothing else is shared.

    Hooks are run as they are given. slurmd builds Prolog's environment from empty, so a hook that
    needs a variable is wrapped by write_hook.
    """

    def __init__(
        self,
        *,
        nodes: int = 3,
        hooks: Hooks = _NO_HOOKS,
        lua: Sequence[Path] = (),
        etc: Path | None = None,
        extra_conf: str = "",
        lab: Lab | None = None,
    ) -> None:
        """Describe the cluster; nothing runs yet.

        lua: plugins, under the names that Slurm looks for. etc: a directory whose files replace the
        host's in the nodes' /etc. extra_conf: lines of slurm.conf; a setting there replaces the
        cluster's own. lab: has a network namespace for each node; without it, the nodes share the
        host's loopback.
        """
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._lua = lua
        self._settings = {
            "Prolog": str(hooks.prolog),
            "TaskProlog": str(hooks.task_prolog),
            "Epilog": str(hooks.epilog),
            "PrologFlags": "Alloc",
        }
        for path in lua:
            self._settings |= _PLUGINS[path.name]
        self._etc = etc
        self._extra_conf = extra_conf
        self._lab = lab
        self._daemons: dict[str, Daemon] = {}

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for a cluster, or an empty string."""
        if os.geteuid() != 0:
            return "a Slurm cluster needs root: slurmd runs Prolog as root and jobs as their users"
        for account in (SLURM_USER, MUNGE_USER, *USERS):
            try:
                pwd.getpwnam(account)
            except KeyError:
                return f"no account {account} here (run tests/install-packages as root)"
        return missing_commands(*_COMMANDS)

    def __enter__(self) -> Self:
        """Start. If that fails or is interrupted, end what was started."""
        # A short path: the name of a unix socket has room for 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.conf = self.directory / "slurm.conf"
        self.work = self.directory / "work"
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all daemons, jobs and hooks of this cluster by pid, and remove its directory."""
        self._stop()

    def stop_node(self, node: str) -> None:
        """Take a node away as a power cut does: slurmd, job steps and hooks are killed at once.

        slurmctld is told, which would find out after SlurmdTimeout: the node's jobs end as
        NODE_FAIL or are requeued.
        """
        self._daemons.pop(node).kill()
        wait_until(lambda: not self._kill(node), what=f"the end of all on {node}")
        self.scontrol("update", f"nodename={node}", "state=down", "reason=Not responding")

    def start_node(self, node: str, *, rebooted: bool = True) -> None:
        """Start a stopped node, which reports a reboot, and wait until it answers."""
        self._start_node(node, *(["-b"] if rebooted else []))
        self._wait(lambda: self.node_states()[node] in {"idle", "drained"}, f"{node} to be back")

    def on_node(self, node: str) -> list[int]:
        """Return the processes that a node's slurmd started, including hooks and their children."""
        return descendants(self._daemons[node].pid)

    def log(self, name: str) -> str:
        """Return the log of slurmctld, munged or a node."""
        return (self.directory / "log" / f"{name}.log").read_text(errors="replace")

    def _start(self) -> None:
        self._make_directories()
        self._write_conf()
        munge = self.directory / "munge"
        argv = ["munged", "--foreground", f"--log-file={self.directory}/log/munged.log"]
        argv += [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "seed")]
        self._start_daemon("munged", [*argv, f"--socket={munge}/socket"], user=MUNGE_USER)
        self._wait((munge / "socket").exists, "munged")
        argv = ["slurmctld", "-D", "-f", str(self.conf)]
        self._start_daemon("slurmctld", argv, user=SLURM_USER)
        self._wait(lambda: listens(self._ports[0]), "slurmctld")
        for node in self.nodes:
            self._start_node(node)
        idle = dict.fromkeys(self.nodes, "idle")
        self._wait(lambda: self.node_states() == idle, "all nodes to be idle")

    def _stop(self) -> None:
        # slurmctld first, so that nothing new starts; then what runs on the nodes, because a
        # slurmd that is told to end waits for its Prolog.
        if "slurmctld" in self._daemons:
            self._daemons.pop("slurmctld").stop()
        self._kill()
        for daemon in reversed(self._daemons.values()):
            daemon.stop()
        self._daemons.clear()
        wait_until(lambda: not self._kill(), what="the end of the cluster's processes")
        shutil.rmtree(self.directory)

    def _kill(self, node: str = "") -> int:
        return kill_processes(
            setting=f"SLURM_CONF={self.conf}",
            mark=f"SLURMD_NODENAME={node}" if node else "",
            log=self.directory / "log" / f"{node}.log" if node else None,
            spare=[daemon.pid for daemon in self._daemons.values()],
        )

    def _make_directories(self) -> None:
        self.directory.chmod(0o755)
        for name, owner, mode in (
            ("munge", MUNGE_USER, 0o755),
            ("state", SLURM_USER, 0o700),
            ("spool", "root", 0o755),
            # Daemons of several accounts, and everybody's jobs, write here.
            ("log", "root", 0o1777),
            ("work", "root", 0o1777),
        ):
            path = self.directory / name
            path.mkdir()
            path.chmod(mode)
            shutil.chown(path, owner)
        for node in self.nodes:
            spool = self.directory / "spool" / node
            spool.mkdir()
            spool.chmod(0o755)
        key = self.directory / "munge" / "key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(128))
        shutil.chown(key, MUNGE_USER)

    def _write_conf(self) -> None:
        for path in self._lua:
            shutil.copyfile(path, self.directory / path.name)
        if slurm_version() >= (24, 5):
            # Without a cgroup tree of their own the daemons of newer releases refuse to start;
            # older ones do not know this value, and do not look.
            (self.directory / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        self._ports = free_ports(1 + len(self.nodes))
        text = slurm_conf(
            self.directory,
            nodes=self.nodes,
            ports=self._ports,
            addresses=self._addresses(),
            settings=self._settings,
            extra=self._extra_conf,
        )
        self.conf.write_text(text)
        for path in self.directory.glob("*.*"):
            # Users' commands read them, whatever the umask of the test run.
            path.chmod(0o644)

    def _start_node(self, node: str, *options: str) -> None:
        argv = ["slurmd", "-D", "-f", str(self.conf), "-N", node, *options]
        if self._etc:
            argv = among_users(self._etc, argv)
        if self._lab:
            argv = [*self._lab.enter(f"{self._lab.name}-{node}"), *argv]
        self._start_daemon(node, argv)

    def _addresses(self) -> list[str]:
        """Return the address of slurmctld, then those of the nodes."""
        if self._lab is None:
            return ["127.0.0.1"] * (1 + len(self.nodes))
        return [self._lab.join_host(), *(node.address for node in self._lab.nodes)]

    def _start_daemon(self, name: str, argv: list[str], *, user: str = "root") -> None:
        self._daemons[name] = Daemon(
            argv,
            output=self.directory / "log" / f"{name}.out",
            user=user,
            env={"SLURM_CONF": str(self.conf)},
        )
        self._daemons[name].start()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def ready() -> bool:
            for daemon in self._daemons.values():
                daemon.expect_running()
            return condition()

        wait_until(ready, timeout_s=_START_TIMEOUT_S, what=what)


@functools.cache
def slurm_version() -> tuple[int, int]:
    """Return the installed release, such as (22, 5)."""
    result = subprocess.run(
        ["slurmctld", "-V"], env={"PATH": PATH}, capture_output=True, text=True, check=True
    )
    year, month = re.findall(r"\d+", result.stdout)[:2]
    return int(year), int(month)


def hpcimg_hooks(directory: Path, variables: Mapping[str, str]) -> Hooks:
    """Write hpcimg's hooks, with these variables in their environment, to a directory for all."""
    # Ordinary users may be unable to enter the checkout.
    task_prolog = Path(shutil.copy(TASK_PROLOG, directory))
    task_prolog.chmod(0o755)
    return Hooks(
        write_hook(directory, "prolog", PROLOG, variables),
        write_hook(directory, "task-prolog", task_prolog, variables),
        write_hook(directory, "epilog", EPILOG, variables),
    )


def write_hook(directory: Path, name: str, target: Path | str, env: Mapping[str, str]) -> Path:
    """Write a script that sets the variables and becomes the target; return its path.

    It is root's and executable by all, as slurmd and the task prolog want it.
    """
    lines = [f"export {variable}={shlex.quote(value)}" for variable, value in env.items()]
    path = directory / name
    path.write_text("\n".join(["#!/bin/sh", *lines, f'exec {shlex.quote(str(target))} "$@"', ""]))
    path.chmod(0o755)
    return path
