"""The files of one job: its record, and the lines that its task prolog prints.

Imports only built-in modules: a cache hit writes them.
"""

import errno
import posix
import time

from hpcimg import acl, atomic
from hpcimg.cache import lease
from hpcimg.cache.paths import Layout
from hpcimg.plainjson import dumps

STAGING, READY, FAILED = "staging", "ready", "failed"  # the states of a job's record
_PYXIS_MAX = 64 << 10  # bytes
_TEXT_MAX = 4096  # characters; a comment may be longer than any valid one


class Image:
    """One image that a job requested: the name that it gave, and the result.

    `format` is "" if the job requested it from hpcimg; if from pyxis, the format that pyxis needs.
    """

    __slots__ = ("format", "key", "name", "path", "source", "text", "uri")

    def __init__(
        self,
        name: str,
        text: str,
        *,
        uri: str = "",
        key: str = "",
        path: str = "",
        source: str = "",
        format: str = "",
    ) -> None:
        self.name = name
        self.text = text
        self.uri = uri
        self.key = key
        self.path = path
        self.source = source
        self.format = format


class Job:
    """A job with its request, as in its record. `started`, a Unix time, is when Prolog began."""

    __slots__ = ("id", "images", "started", "uid")

    def __init__(self, id: str, uid: int, images: list[Image], *, started: float) -> None:
        self.id = id
        self.uid = uid
        self.images = images
        self.started = started


def prepare(layout: Layout, job: str) -> None:
    """Create the job's directory, removing what an earlier run of a requeued job left there.

    A job with this directory and no task file was interrupted, and fails: so it is created before
    anything else, also on a node that has just booted.
    """
    directory = layout.job(job)
    try:
        posix.mkdir(directory, 0o755)
    except FileNotFoundError:
        import os

        os.makedirs(layout.jobs, mode=0o711, exist_ok=True)
        posix.mkdir(directory, 0o755)
    except FileExistsError:
        _empty(directory)


class Admitted:
    """A job's directory: `number` tells it from a later one of this job; `made`: we created it."""

    __slots__ = ("made", "number")

    def __init__(self, number: int, made: bool) -> None:
        self.number = number
        self.made = made


def admit(layout: Layout, job: str, uid: int) -> Admitted:
    """Create the directory of a job for which Prolog had nothing to do.

    Epilog then looks for its leases, and its tasks start as before. It appears complete or not at
    all. An existing directory of the job is returned. Raises FileNotFoundError if Epilog is
    removing it.
    """
    import os

    directory, is_ours = layout.job(job), False
    if not os.path.lexists(directory):
        from hpcimg import processes

        made = processes.temp_path(layout.state_tmp, f"job-{job}")
        posix.mkdir(made, 0o755)
        try:
            _write(made, Job(job, uid, [], started=time.time()), [], {"state": READY})
            posix.rename(made, directory)  # replaces at most an empty one
            is_ours = True
        except OSError as error:
            _empty(made)
            posix.rmdir(made)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
    number = posix.stat(directory).st_ino
    if not is_open(layout, job, number):
        raise FileNotFoundError(errno.ENOENT, posix.strerror(errno.ENOENT), directory)
    return Admitted(number, is_ours)


def is_open(layout: Layout, job: str, number: int) -> bool:
    """Tell whether Epilog is still to come for the job with this directory from `admit`.

    If so, Epilog will release what was leased to the job before.
    """
    try:
        posix.stat(f"{layout.job(job)}/task")
        return posix.stat(layout.job(job)).st_ino == number
    except FileNotFoundError:
        return False


def add_for_pyxis(layout: Layout, job: str, uid: int, text: str, path: str) -> None:
    """Let the job's importer find an image by itself the next time.

    One image has many names, and all jobs share the tmpfs: beyond a limit, they are left out.
    """
    file, pair = f"{layout.job(job)}/pyxis", f"{text}\n{path}\n"
    try:
        descriptor = posix.open(file, posix.O_RDWR | posix.O_APPEND | posix.O_NOFOLLOW)
    except FileNotFoundError:
        _write_file(file, pair, uid)
        return
    try:
        before = posix.read(descriptor, _PYXIS_MAX)
        if pair.encode() not in before and len(before) < _PYXIS_MAX:
            posix.write(descriptor, pair.encode())  # in one write: a reader sees complete lines
    finally:
        posix.close(descriptor)


def write_asked(layout: Layout, job: Job, *, process: str) -> None:
    """Record what the job waits for, until its result is known; `process` is its Prolog's."""
    _write_record(layout.job(job.id), job, {"state": STAGING, "process": process})


def write_ready(layout: Layout, job: Job, *, links: list[str]) -> None:
    """Tell the job where its images are, and link them for these workflow managers."""
    ours = [image for image in job.images if not image.format]
    directory = layout.job(job.id)
    lines = [f"export HPCIMG_IMAGE_{image.name}={image.path}" for image in ours if image.name]
    if ours:
        lines.insert(0, f"export HPCIMG_IMAGE={ours[0].path}")
        lines.append("export HPCIMG_IMAGES=" + ":".join(image.path for image in ours))
    if links:
        lines += _link(f"{directory}/links", job.uid, ours, links)
    if len(ours) < len(job.images):
        pairs = [f"{image.text}\n{image.path}\n" for image in job.images if image.format]
        _write_file(f"{directory}/pyxis", "".join(pairs), job.uid)
    _write(directory, job, lines, {"state": READY})


def write_failed(layout: Layout, job: Job, *, message: str, error: str, kind: str) -> None:
    """Tell the job why it cannot run; its tasks print the message and exit with 1."""
    lines = [f"print hpcimg: {message}", "exit 1"]
    failure: dict[str, object] = {
        "state": FAILED,
        "error": error,
        "class": kind,
        "message": message,
    }
    _write(layout.job(job.id), job, lines, failure)


def release(layout: Layout, job: str) -> None:
    """Drop the leases of a job that has ended, then its directory.

    The task file goes first: leases taken for the job after that are not kept, see `is_open`.
    """
    directory = layout.job(job)
    atomic.remove(f"{directory}/task")
    lease.drop(layout, job)
    try:
        _empty(directory)
        posix.rmdir(directory)
    except FileNotFoundError:
        pass


def exists(layout: Layout, job: str) -> bool:
    """Tell whether a job has a directory."""
    try:
        posix.stat(layout.job(job))
    except OSError:
        return False
    return True


def all_jobs(layout: Layout) -> set[str]:
    """Return every job that has a directory."""
    try:
        return set(posix.listdir(layout.jobs))
    except FileNotFoundError:
        return set()


def _link(directory: str, uid: int, images: list[Image], managers: list[str]) -> list[str]:
    """Create the directory of links; return the lines that tell the job about it.

    Root owns it and the links: otherwise the user could fill the shared tmpfs.
    """
    import os

    from hpcimg.managers import MANAGERS, names

    posix.mkdir(directory, 0o700)
    lines = [f"export HPCIMG_LINKS={directory}"]
    for manager in managers:
        place = f"{directory}/{manager}"
        posix.mkdir(place, 0o755)
        for image in images:
            for name in names(manager, (image.text, image.uri)):
                if not os.path.lexists(f"{place}/{name}"):  # the job's first such image wins
                    posix.symlink(image.path, f"{place}/{name}")
        lines += [f"export {variable}={place}" for variable in MANAGERS[manager].variables]
    if uid != posix.geteuid():
        _let_enter(directory, uid)
    return lines


def _let_enter(directory: str, uid: int) -> None:
    """Let only this user list and enter a directory: references can be private."""
    try:
        acl.let_enter(directory, uid)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        posix.chmod(directory, 0o711)  # to enter it, and not to list it


def _empty(directory: str) -> None:
    for name in posix.listdir(directory):
        try:
            atomic.remove(f"{directory}/{name}")
        except IsADirectoryError:
            _empty(f"{directory}/{name}")
            posix.rmdir(f"{directory}/{name}")


def _write(directory: str, job: Job, lines: list[str], state: dict[str, object]) -> None:
    _write_record(directory, job, state)
    # The task file comes last: once it exists, everything is there.
    _write_file(f"{directory}/task", "".join(f"{line}\n" for line in lines), job.uid)


def _write_record(directory: str, job: Job, state: dict[str, object]) -> None:
    fields = ("name", "text", "uri", "key", "path", "source")
    record = {
        "version": 1,
        "job": job.id,
        "uid": job.uid,
        **state,
        "started": round(job.started, 3),
        "images": [
            {field: getattr(image, field)[:_TEXT_MAX] for field in fields} for image in job.images
        ],
    }
    _write_file(f"{directory}/record.json", dumps(record) + "\n", job.uid)


def _write_file(path: str, text: str, uid: int) -> None:
    # Only the job's user and root can read them: references can be private. Root owns them, since
    # they are on a shared tmpfs that nobody else should fill.
    atomic.write_file(path, text, mode=0o400, reader=uid if posix.geteuid() == 0 else None)
