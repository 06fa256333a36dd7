"""A cluster as users and operators see it: Slurm's own commands, run as any user."""

from __future__ import annotations

import pwd
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.parts.daemon import PATH, PartError, wait_until

# Ordinary users to submit as: accounts that every Linux distribution brings and that own nothing
# which a job could harm.
USERS = ("games", "mail", "lp")

# The states that a job does not leave. While its Epilog runs it is COMPLETING, so an ended job
# has had its Epilog on every node.
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    }
)

# Fields of `scontrol show job` whose value is the rest of the line, spaces included.
_WHOLE_LINE = (
    "Comment",
    "AdminComment",
    "SystemComment",
    "Command",
    "WorkDir",
    "StdErr",
    "StdIn",
    "StdOut",
)


class SlurmClient:
    """Commands against the cluster of one slurm.conf, run in a directory that all may write to."""

    conf: Path
    work: Path

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root or as a user, with env and little more than SLURM_CONF.

        The exit status is the caller's to judge. Raise subprocess.TimeoutExpired.
        """
        process = self.popen(argv, user=user, env=env)
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    def popen(
        self, argv: Sequence[str], *, user: str = "root", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command like run, without waiting for it; all three streams are pipes."""
        account = pwd.getpwnam(user)
        return subprocess.Popen(
            argv,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd=self.work,
            env={
                "PATH": PATH,
                "LC_ALL": "C.UTF-8",
                "USER": user,
                "HOME": str(self.work),
                "SLURM_CONF": str(self.conf),
                **(env or {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sbatch(
        self,
        script: str,
        *options: str,
        user: str = USERS[0],
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Submit a script, run by /bin/sh unless it names an interpreter; return the job id."""
        if not script.startswith("#!"):
            script = f"#!/bin/sh\n{script}\n"
        argv = ["sbatch", "--parsable", *options]
        return int(_stdout(self.run(argv, user=user, stdin=script, env=env)))

    def srun(
        self,
        *arguments: str,
        user: str = USERS[0],
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run srun as on a login node, in an allocation of its own."""
        return self.run(["srun", *arguments], user=user, env=env, timeout_s=timeout_s)

    def salloc(
        self,
        *arguments: str,
        user: str = USERS[0],
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run salloc with its options and the command to run in the allocation."""
        return self.run(["salloc", *arguments], user=user, env=env, timeout_s=timeout_s)

    def scontrol(self, *arguments: str) -> str:
        """Run scontrol as root and return its output. Raises PartError if it fails."""
        return _stdout(self.run(["scontrol", *arguments]))

    def scancel(self, job_id: int) -> None:
        """Cancel a job as root."""
        _stdout(self.run(["scancel", str(job_id)]))

    def job(self, job_id: int) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        return job_fields(self.scontrol("show", "job", str(job_id)))

    def wait(self, job_id: int, *, timeout_s: float = 60, until: Collection[str] = ENDED) -> str:
        """Wait until the job's state is one of these, by default a final one; return it."""

        def reached() -> bool:
            return self.job(job_id)["JobState"] in until

        try:
            wait_until(reached, timeout_s=timeout_s, what=f"job {job_id}")
        except PartError as error:
            raise PartError(f"{error}:\n{self.scontrol('show', 'job', str(job_id))}") from None
        return self.job(job_id)["JobState"]

    def output_path(self, job_id: int) -> Path:
        """Return the path of a batch job's default output file."""
        return self.work / f"slurm-{job_id}.out"

    def output(self, job_id: int) -> str:
        """Return what a batch job has written to its default output file, both streams."""
        path = self.output_path(job_id)
        return path.read_text(errors="replace") if path.exists() else ""

    def node_states(self) -> dict[str, str]:
        """Return each node's state in sinfo's long form: idle, mixed, drained, down* and so on."""
        return self._sinfo("%T")

    def node_reasons(self) -> dict[str, str]:
        """Return why each node is drained or down, "none" if it is neither."""
        return self._sinfo("%E")

    def resume(self, node: str) -> None:
        """Return a drained node to service and wait until it is idle."""
        self.scontrol("update", f"nodename={node}", "state=resume")
        wait_until(lambda: self.node_states()[node] == "idle", what=f"{node} to be idle")

    def _sinfo(self, column: str) -> dict[str, str]:
        listing = self.run(["sinfo", "--noheader", "--Node", "--format", f"%N {column}"]).stdout
        rows = (line.split(maxsplit=1) for line in listing.splitlines())
        return {name: value.strip() for name, value in rows}


def job_fields(listing: str) -> dict[str, str]:
    """Return the names and values of a `scontrol show job` listing."""
    fields = {}
    for line in listing.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name in _WHOLE_LINE:
            fields[name] = value
        else:
            fields.update(re.findall(r"(\S+?)=(\S*)", line))
    return fields


def _stdout(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode != 0:
        raise PartError(f"{' '.join(result.args)}: exit {result.returncode}\n{result.stderr}")
    return result.stdout.strip()
