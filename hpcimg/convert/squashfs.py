"""Packing a merged image into a squashfs file system, by mksquashfs.

That of squashfs-tools 4.5 or newer reads archives, and gets one through a pipe;
`hpcimg.convert.oldsquashfs` is for those before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from hpcimg import programs
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.stream import Stream
from hpcimg.errors import (
    HpcimgError,
    Interrupted,
    MissingTool,
    NodeError,
    NoRoom,
    NotAnImage,
    TooLarge,
)

_OLDEST = (4, 3)
_READS_TAR = (4, 5)
# To find equal files, those before read back what they may not have written yet, and then end with
# "uncompress failed". They also take several times as long where many files are of one size.
_FINDS_DUPLICATES = (4, 6)
_PIPE_BYTES = 1 << 20
_MEMORY_MIB, _MEMORY_MIB_EACH = 512, 32
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)  # exit codes as subprocess has them
_WHY_KILLED = "it was killed, by somebody or for want of memory"


class Mksquashfs(NamedTuple):
    """The program, and which one it is."""

    path: str
    version: tuple[int, int]

    @property
    def reads_tar(self) -> bool:
        """Tell whether it takes an archive rather than a directory."""
        return self.version >= _READS_TAR


class Output(NamedTuple):
    """Where and how a squashfs is written.

    `file` is an open, empty file that this process may also open by /proc/self/fd; the file system
    begins at `offset`. `compression` is as in `[stage] compression`, `uri` is for errors.
    """

    file: int
    offset: int
    compression: str
    uri: str


def find_mksquashfs() -> Mksquashfs:
    """Return the node's mksquashfs. Raises MissingTool where it has none, or a too old one.

    Raises Interrupted where it is killed before it says its version.
    """
    path = programs.find("mksquashfs")
    if not path:
        raise _missing("this node has no mksquashfs")
    try:
        done = subprocess.run(
            [path, "-version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=programs.environment(),
            check=False,
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.ENOMEM):  # no process could be made for it
            raise
        raise _missing(f"{path} does not run: {error.strerror}") from error
    if done.returncode in _KILLED:
        raise Interrupted(f"{path} could not be asked for its version", why=_WHY_KILLED)
    said = re.search(rb"version (\d+)\.(\d+)", done.stdout)
    if not said:
        raise _missing(f"{path} does not say its version")
    version = int(said[1]), int(said[2])
    if version < _OLDEST:
        raise _missing(f"{path} is {version[0]}.{version[1]}, which is too old")
    return Mksquashfs(path, version)


def pack(mksquashfs: Mksquashfs, output: Output, fill: Callable[[Receiver], None]) -> None:
    """Write the members that `fill` adds as a squashfs file system.

    For a mksquashfs that reads archives. Raises HpcimgError, and what `fill` raises.
    """
    whole = False
    argv = ["-", f"/proc/self/fd/{output.file}", "-tar", "-quiet", "-root-mode", "755"]
    argv += ["-offset", str(output.offset), *options(output.compression)]
    with (
        programs.listen() as words,
        started(mksquashfs, argv, output.file, words=words, stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        stream = Stream(process.stdin.fileno())
        try:
            fill(stream)
            stream.end()
            whole = True
        except BrokenPipeError:
            pass  # it ended; why is looked at below
        process.stdin.close()
        code = process.wait()
        if code or not whole:
            raise explain(code, programs.last_words(words), output.uri)


@contextmanager
def started(
    mksquashfs: Mksquashfs,
    argv: list[str],
    output: int,
    *,
    words: IO[Any],
    cwd: str = "/",
    stdin: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run mksquashfs; it is gone at the end, and killed where that is an error."""
    os.ftruncate(output, 0)
    processors = len(os.sched_getaffinity(0))
    duplicates = [] if mksquashfs.version >= _FINDS_DUPLICATES else ["-no-duplicates"]
    with subprocess.Popen(
        [
            mksquashfs.path, *argv, *duplicates, "-noappend", "-all-root", "-no-xattrs",
            "-no-progress", "-processors", str(processors), "-mem", f"{_memory_mib(processors)}M",
        ],
        bufsize=0,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=words,
        cwd=cwd,
        env=programs.environment(),
        pass_fds=(output,),
        preexec_fn=programs.die_with_parent(),  # noqa: PLW1509
    ) as process:  # fmt: skip
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def options(compression: str) -> list[str]:
    """Return mksquashfs' options for `[stage] compression`, NAME or NAME:LEVEL."""
    name, _, level = compression.partition(":")
    return ["-comp", name, *(["-Xcompression-level", level] if level else [])]


def explain(code: int, said: str, uri: str) -> HpcimgError:
    """Return the error for a mksquashfs that failed."""
    what = f"mksquashfs could not convert {uri}"
    if "No space left on device" in said or "quota exceeded" in said:
        return NoRoom(f"the disk of this node filled up while {uri} was converted")
    if -code == signal.SIGXFSZ or "file too large" in said.lower():
        return TooLarge(
            f"{uri} is too large", why="the converted image is larger than this node takes"
        )
    if "out of memory" in said.lower():
        why = "to convert it takes more memory than this node allows for one image"
        return TooLarge(f"{uri} is too large", why=why)
    if code in _KILLED:
        return Interrupted(what, why=_WHY_KILLED)
    if "failed to create thread" in said.lower():  # as many as the account may have
        return Interrupted(what, why=said)
    if code < 0:
        return NotAnImage(what, why=f"it crashed, by signal {-code}", do="Use another image.")
    return NodeError(what, why=said or f"it ended with {code}")


def _memory_mib(processors: int) -> int:
    """Return what mksquashfs may queue in memory: as much as keeps it busy, or its own default.

    The default, a quarter of the node's memory, is the jobs'.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return min(whole // 4, _MEMORY_MIB + processors * _MEMORY_MIB_EACH)


def _missing(why: str) -> MissingTool:
    return MissingTool(
        "images cannot be converted on this node",
        why=why,
        do="Administrators: install squashfs-tools, 4.5 or newer is best, 4.3 the oldest.",
    )
