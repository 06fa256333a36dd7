"""Run the Slurm tests in root file systems of several Debian releases, and print a table."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.matrix.roots import Root, host_mirror
from tests.parts.daemon import PATH

RELEASES = ("bookworm", "trixie", "sid")
PYTHON = ".venv/bin/python"
COMMANDS = ("apt-get", "debootstrap", "git", "pivot_root", "setpriv", "unshare")
REPORT = "matrix.xml"


class Row(NamedTuple):
    """The result for one release."""

    release: str
    slurm: str = "-"
    python: str = "-"
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    minutes: float = 0
    wrong: str = ""


def main() -> int:
    """Run the command line; return 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("releases", nargs="*", metavar="RELEASE", default=RELEASES)
    parser.add_argument(
        "--directory", type=Path, default=Path(".matrix"), help="where roots are kept"
    )
    parser.add_argument("--mirror", default="", help="Debian archive, by default this host's")
    parser.add_argument("--run", metavar="COMMAND", help="run this there instead of the tests")
    options = parser.parse_args()
    if missing := _missing():
        print(f"test-matrix: {missing}")
        return 1
    mirror = options.mirror or host_mirror()
    if not mirror:
        print("test-matrix: apt here knows no Debian archive; name one by --mirror")
        return 1
    roots = [Root(options.directory.absolute(), release) for release in options.releases]
    if options.run:
        done = [run(root, mirror, options.run) for root in roots]
        return 0 if all(done) else 1
    rows = [test(root, mirror) for root in roots]
    show(rows)
    return 0 if all(row.passed and not row.failed and not row.wrong for row in rows) else 1


def run(root: Root, mirror: str, command: str) -> bool:
    """Run a shell command in one release; tell whether it succeeded."""
    try:
        with root.locked():
            prepare(root, mirror)
            root.run(["sh", "-c", command])
    except subprocess.CalledProcessError:
        return False
    return True


def prepare(root: Root, mirror: str) -> None:
    """Create a missing root, and update its copy of the checkout."""
    print(f"\n== {root.release}, in {root.path}", flush=True)
    root.make(mirror)
    root.update()
    root.run(["make", ".venv/ready"])


def test(root: Root, mirror: str) -> Row:
    """Run the Slurm tests of one release."""
    row = Row(root.release)
    began = time.monotonic()
    try:
        with root.locked():
            prepare(root, mirror)
            row = row._replace(
                slurm=root.output(["slurmctld", "-V"]).split()[-1],
                python=root.output([PYTHON, "-V"]).split()[-1],
            )
            pytest = [PYTHON, "-m", "pytest", f"--junit-xml={REPORT}", "tests/slurm"]
            try:
                root.run(pytest)
            finally:
                row = _counted(row, root.checkout / REPORT)
    except subprocess.CalledProcessError:
        row = row._replace(wrong="" if row.failed else "did not finish, see above")
    return row._replace(minutes=(time.monotonic() - began) / 60)


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"\n{'release':10}{'Slurm':12}{'Python':10}passed  failed  skipped  minutes")
    for row in rows:
        names = f"{row.release:10}{row.slurm:12}{row.python:10}"
        counts = f"{row.passed:6}{row.failed:8}{row.skipped:9}{row.minutes:9.1f}"
        print(f"{names}{counts}  {row.wrong}".rstrip())


def _counted(row: Row, report: Path) -> Row:
    if not report.exists():
        return row
    [suite] = ElementTree.parse(report).getroot()
    total, failures, errors, skipped = (
        int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return row._replace(passed=total - failed - skipped, failed=failed, skipped=skipped)


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root, to make root file systems and to mount in them"
    absent = [name for name in COMMANDS if shutil.which(name, path=PATH) is None]
    return f"not installed here: {', '.join(absent)}" if absent else ""


if __name__ == "__main__":
    sys.exit(main())
