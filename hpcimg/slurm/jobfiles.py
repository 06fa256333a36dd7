"""The files of one job: its record, and the lines its task prolog prints.

Imports only os: the way to a warm hit writes them.
"""

import os

from hpcimg import atomic
from hpcimg.cache.paths import Layout
from hpcimg.plainjson import dumps

STAGING, READY, FAILED = "staging", "ready", "failed"  # the states of a job's record
_TEXT_MAX = 4096  # characters; a comment may be longer than all that can be in it


class Image:
    """One image that a job asked for: the name it gave, and what came of it."""

    __slots__ = ("key", "name", "path", "source", "text", "uri")

    def __init__(
        self,
        name: str,
        text: str,
        *,
        uri: str = "",
        key: str = "",
        path: str = "",
        source: str = "",
    ) -> None:
        self.name = name
        self.text = text
        self.uri = uri
        self.key = key
        self.path = path
        self.source = source


def prepare(layout: Layout, job: str) -> None:
    """Make the job's directory; what an earlier run of a requeued job left there goes.

    A job that has this directory and no task file was interrupted, and fails: so it
    is made before all else, on a node that just booted too.
    """
    directory = layout.job(job)
    try:
        os.mkdir(directory, 0o755)
    except FileNotFoundError:
        os.makedirs(layout.jobs, mode=0o711, exist_ok=True)
        os.mkdir(directory, 0o755)
    except FileExistsError:
        _empty(directory)


def write_asked(
    layout: Layout, job: str, uid: int, images: list[Image], *, started: float, process: str
) -> None:
    """Say what the job waits for, until it is told what came of it; `process` is its Prolog's."""
    _write_record(
        layout, job, uid, {"state": STAGING, "process": process, **_common(images, started)}
    )


def write_ready(layout: Layout, job: str, uid: int, images: list[Image], *, started: float) -> None:
    """Tell the job where its images are."""
    lines = [f"export HPCIMG_IMAGE={images[0].path}"]
    lines += [f"export HPCIMG_IMAGE_{image.name}={image.path}" for image in images if image.name]
    lines.append("export HPCIMG_IMAGES=" + ":".join(image.path for image in images))
    _write(layout, job, uid, lines, {"state": READY, **_common(images, started)})


def write_failed(
    layout: Layout,
    job: str,
    uid: int,
    images: list[Image],
    *,
    started: float,
    message: str,
    error: str,
    kind: str,
) -> None:
    """Tell the job why it cannot run; its tasks print the message and end with 1."""
    lines = [f"print hpcimg: {message}", "exit 1"]
    failure = {"error": error, "class": kind, "message": message}
    _write(layout, job, uid, lines, {"state": FAILED, **failure, **_common(images, started)})


def remove(layout: Layout, job: str) -> bool:
    """Remove the job's directory; return whether there was one."""
    directory = layout.job(job)
    try:
        _empty(directory)
        os.rmdir(directory)
    except FileNotFoundError:
        return False
    return True


def all_jobs(layout: Layout) -> set[str]:
    """Return every job that has a directory."""
    try:
        return set(os.listdir(layout.jobs))
    except FileNotFoundError:
        return set()


def _empty(directory: str) -> None:
    for name in os.listdir(directory):
        atomic.remove(f"{directory}/{name}")


def _common(images: list[Image], started: float) -> dict[str, object]:
    fields = ("name", "text", "uri", "key", "path", "source")
    return {
        "started": round(started, 3),
        "images": [
            {field: getattr(image, field)[:_TEXT_MAX] for field in fields} for image in images
        ],
    }


def _write(layout: Layout, job: str, uid: int, lines: list[str], record: dict[str, object]) -> None:
    _write_record(layout, job, uid, record)
    # The task file comes last: once it is there, all is said.
    _write_file(layout, job, uid, "task", "\n".join(lines))


def _write_record(layout: Layout, job: str, uid: int, record: dict[str, object]) -> None:
    record = {"version": 1, "job": job, "uid": uid, **record}
    _write_file(layout, job, uid, "record.json", dumps(record))


def _write_file(layout: Layout, job: str, uid: int, name: str, text: str) -> None:
    # Only the job's user and root read them: references can be private. They stay root's, on a
    # tmpfs that all share and nobody else is to fill.
    reader = uid if os.geteuid() == 0 else None
    atomic.write_file(f"{layout.job(job)}/{name}", f"{text}\n", mode=0o400, reader=reader)
