"""Packing a tar stream into a squashfs file system: mksquashfs of squashfs-tools 4.5 or newer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable

from hpcimg.convert import programs
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

_READS_TAR = (4, 5)
_PIPE_BYTES = 1 << 20
_MEMORY_MIB, _MEMORY_MIB_EACH = 512, 32
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)  # exit codes as subprocess has them
_WHY_KILLED = "it was killed, by somebody or for want of memory"


def find_mksquashfs() -> str:
    """Return the path of mksquashfs. Raises MissingTool where it cannot read tar archives.

    Raises Interrupted where it is killed before it says so.
    """
    path = programs.find("mksquashfs")
    if not path:
        raise _missing("this node has no mksquashfs")
    done = subprocess.run(
        [path, "-version"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=programs.environment(),
        check=False,
    )
    if done.returncode in _KILLED:
        raise Interrupted(f"{path} could not be asked for its version", why=_WHY_KILLED)
    said = re.search(rb"version (\d+)\.(\d+)", done.stdout)
    if not said:
        raise _missing(f"{path} does not say its version")
    if (int(said[1]), int(said[2])) < _READS_TAR:
        raise _missing(f"{path} is {said[1].decode()}.{said[2].decode()}, which reads no archives")
    return path


def options(compression: str) -> list[str]:
    """Return mksquashfs' options for `[stage] compression`, NAME or NAME:LEVEL."""
    name, _, level = compression.partition(":")
    return ["-comp", name, *(["-Xcompression-level", level] if level else [])]


def pack(
    mksquashfs: str,
    output: int,
    fill: Callable[[Stream], None],
    *,
    compression: str,
    offset: int,
    uri: str,
) -> None:
    """Write a squashfs at an offset of the open file `output` from what `fill` adds.

    Raises HpcimgError, and what `fill` raises.
    """
    os.ftruncate(output, 0)
    processors = len(os.sched_getaffinity(0))
    argv = [
        mksquashfs, "-", f"/proc/self/fd/{output}", "-tar", "-noappend", "-all-root", "-no-xattrs",
        "-no-progress", "-quiet", "-root-mode", "755", "-offset", str(offset),
        "-processors", str(processors), "-mem", f"{_memory_mib(processors)}M",
        *options(compression),
    ]  # fmt: skip
    whole = False
    with (
        programs.listen() as words,
        subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=words,
            cwd="/",
            env=programs.environment(),
            pass_fds=(output,),
            preexec_fn=programs.die_with_parent(),  # noqa: PLW1509
        ) as process,
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
        except BaseException:
            process.kill()
            raise
        process.stdin.close()
        code = process.wait()
        if code or not whole:
            raise explain("mksquashfs", code, programs.last_words(words), uri)


def explain(program: str, code: int, said: str, uri: str) -> HpcimgError:
    """Return the error for a program that failed."""
    what = f"{program} could not convert {uri}"
    if "No space left on device" in said or "quota exceeded" in said:
        return NoRoom(f"the disk of this node filled up while {uri} was converted")
    if -code == signal.SIGXFSZ or "file too large" in said.lower():
        return TooLarge(
            f"{uri} is too large", why="converted it is larger than this node takes any"
        )
    if "out of memory" in said.lower():
        why = "to convert it takes more memory than this node gives to one image"
        return TooLarge(f"{uri} is too large", why=why)
    if code in _KILLED:
        return Interrupted(what, why=_WHY_KILLED)
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
        do="Administrators: install squashfs-tools 4.5 or newer.",
    )
