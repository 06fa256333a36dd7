"""An old mksquashfs, which reads no archives, as in RHEL 8 and 9."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.parts.daemon import PATH
from tests.parts.node import PROLOG, ROOT, Node

# tests/fetch-old-squashfs puts it there.
PROGRAM = ROOT / ".venv/squashfs-tools-4.4/usr/bin/mksquashfs"

# Options that 4.4 has and 4.3 has not.
_LIKE_4_3 = """\
#!/bin/sh
for word; do
    case $word in
        -version) echo "mksquashfs version 4.3 (2014/05/12)"; exit ;;
        -help) "$program" -help 2>&1 | sed /zstd/d >&2; exit 1 ;;
        -o | -offset | -quiet | -root-mode | -tar | -reproducible | -all-time | zstd)
            echo "mksquashfs: invalid option: $word" >&2; exit 1 ;;
    esac
done
exec "$program" "$@"
"""


def missing() -> str:
    """Return a sentence that says why there is no old mksquashfs here, or an empty string."""
    if not PROGRAM.exists():
        return "no squashfs-tools 4.4 in .venv: tests/fetch-old-squashfs could not get them"
    done = subprocess.run([PROGRAM, "-version"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "squashfs-tools 4.4 do not run here"


def put(directory: Path, version: str) -> Path:
    """Put the mksquashfs of that version, 4.3 or 4.4, into a directory; return its path."""
    path = directory / "mksquashfs"
    if version == "4.4":
        shutil.copy(PROGRAM, path)
    else:
        program = shutil.copy(PROGRAM, directory / "mksquashfs-4.4")
        path.write_text(_LIKE_4_3.replace("$program", str(program)))
        path.chmod(0o755)
    return path


class NodeWithOldSquashfs(Node):
    """A node whose mksquashfs is an old one. Needs root."""

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks, or an empty string."""
        if os.geteuid() != 0:
            return "needs root, to put another mksquashfs in its place"
        return missing()

    def start_prolog(self, job: int | str, comment: str | None) -> subprocess.Popen[str]:
        """Start Prolog in a mount namespace where the old program replaces the host's."""
        script = 'mount --bind "$1" "$(command -v mksquashfs)" && exec "$2"'
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", str(PROGRAM), str(PROLOG)],
            env={"PATH": PATH, **self.environment(job, comment)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
