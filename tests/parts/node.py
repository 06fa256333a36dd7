"""A node: a cache, a state directory, and the three hooks called as slurmd calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.parts.daemon import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
PROLOG = ROOT / "prolog" / "hpcimg-prolog"
TASK_PROLOG = ROOT / "prolog" / "hpcimg-task-prolog"
LOOPBACK = "127.0.0.0/8 ::1"  # where all servers of the tests are
EPILOG = ROOT / "epilog" / "hpcimg-epilog"


class Task(NamedTuple):
    """The result of the task prolog: its exit code, the variables it exports, what it prints."""

    code: int
    exports: dict[str, str]
    printed: str

    @property
    def image(self) -> Path:
        return Path(self.exports["HPCIMG_IMAGE"])


class Node:
    """One node below a directory. `settings` are lines of the configuration, by section."""

    def __init__(self, directory: Path, settings: str = "", *, uid: int | None = None) -> None:
        self.directory = directory
        self.cache = directory / "cache"
        self.state = directory / "state"
        self.log_file = directory / "hpcimg.log"
        self.conf = directory / "hpcimg.conf"
        self.uid = os.getuid() if uid is None else uid
        self.extra = ""  # of the jobs to come, as sbatch's --extra
        self.gid: int | None = None  # of the jobs, where slurmd says it
        self.nodes = ""  # of the jobs to come, as slurmd writes them
        self.configure(settings)

    def configure(self, settings: str = "") -> None:
        """Write the configuration: our own paths in hpcimg.conf, `settings` in conf.d."""
        self.conf.write_text(
            f"[cache]\npath = {self.cache}\nmin_free = 0\n"
            f"[state]\npath = {self.state}\n[log]\nto = {self.log_file}\n"
            f"[stage]\nregistries_conf = {self.directory}/registries.conf\n"
        )
        (self.directory / "conf.d").mkdir(exist_ok=True)
        (self.directory / "conf.d" / "test.conf").write_text(settings)

    def environment(self, job: int | str, comment: str | None = None) -> dict[str, str]:
        """Return the environment that slurmd gives a hook: next to nothing."""
        fields = {
            "HPCIMG_CONF": str(self.conf),
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_UID": str(self.uid),
            "SLURMD_NODENAME": "n1",
        }
        if self.extra:
            fields["SLURM_JOB_EXTRA"] = self.extra
        if self.nodes:
            fields |= {"SLURM_NODELIST": self.nodes, "SLURM_CLUSTER_NAME": "cluster"}
        if self.gid is not None:
            fields["SLURM_JOB_GID"] = str(self.gid)
        return fields if comment is None else {**fields, "SLURM_JOB_COMMENT": comment}

    def start_prolog(self, job: int | str, comment: str | None) -> subprocess.Popen[str]:
        """Start Prolog as slurmd does, in a process group of its own."""
        return subprocess.Popen(
            [str(PROLOG)],
            env=self.environment(job, comment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def prolog(self, job: int | str, comment: str | None, *, timeout_s: float = TIMEOUT_S) -> None:
        """Run Prolog to its end; it must end with 0 and say nothing."""
        process = self.start_prolog(job, comment)
        output, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, output
        assert output == ""

    def task(self, job: int | str) -> Task:
        """Run the task prolog as the task's user would."""
        done = self._run([str(TASK_PROLOG)], self.environment(job))
        words = [line.partition(" ") for line in done.stdout.splitlines()]
        exports = dict(rest.split("=", 1) for word, _, rest in words if word == "export")
        printed = "\n".join(rest for word, _, rest in words if word == "print")
        assert {word for word, _, _ in words} <= {"export", "print"}, done.stdout
        return Task(done.returncode, exports, printed)

    def stage(self, job: int | str, comment: str | None, **options: Any) -> Task:
        """Run Prolog and then the task prolog."""
        self.prolog(job, comment, **options)
        return self.task(job)

    def epilog(self, job: int | str) -> None:
        """Run Epilog to its end; it must exit with 0 and print nothing."""
        done = self._run([str(EPILOG)], self.environment(job))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout + done.stderr == ""

    def hpcimg(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        program = "import sys; from hpcimg.cli.main import main; sys.exit(main())"
        environment = {**os.environ, "HPCIMG_CONF": str(self.conf), "PYTHONPATH": str(ROOT)}
        return self._run([sys.executable, "-c", program, *arguments], environment)

    def hpcimg_json(self, *arguments: str) -> dict[str, Any]:
        """Run the command line with --json; return what it printed."""
        done = self.hpcimg(*arguments, "--json")
        fields = json.loads(done.stdout)
        assert fields["version"] == 1
        assert isinstance(fields, dict)
        return fields

    def record(self, job: int | str) -> dict[str, Any]:
        """Return the job's record."""
        fields = json.loads((self.state / "jobs" / str(job) / "record.json").read_text())
        assert isinstance(fields, dict)
        return fields

    def images(self) -> list[Path]:
        """Return all finished images, shared and private."""
        shared = self.cache.glob("images/*")
        return sorted([*shared, *self.cache.glob("users/*/*")])

    def leases(self) -> set[tuple[str, str]]:
        """Return (key, job) of every lease."""
        return {(path.parent.name, path.name) for path in self.state.glob("leases/*/*")}

    def leftovers(self) -> list[Path]:
        """Return the files that may exist only while work is in progress."""
        in_cache = (self.cache / "tmp", self.cache / "work")
        directories = (*in_cache, self.state / "tmp", self.state / "inflight")
        return [
            path for directory in directories if directory.exists() for path in directory.iterdir()
        ]

    def log(self) -> str:
        """Return what was logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def reboot(self) -> None:
        """Clear the tmpfs, as a reboot does."""
        if self.state.exists():
            subprocess.run(["rm", "-rf", str(self.state)], check=True)

    @staticmethod
    def _run(argv: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env=env, text=True, capture_output=True, timeout=120, check=False
        )
