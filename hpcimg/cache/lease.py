"""Leases: an image that a job uses is not evicted.

`leases/<key>/<job>` is one job's lease. The directory `leases/<key>/` makes hits and eviction
exclude each other without a lock: a lease can be created only while the directory exists, and the
evictor's rmdir succeeds only while it is empty. One of the two system calls comes first, and the
other fails. Only the holder of the key's lock may recreate the directory.

Imports only errno and posix: a cache hit uses it.
"""

import errno
import posix

from hpcimg.cache.paths import Layout


def take(layout: Layout, key: str, job: str) -> bool:
    """Create the job's lease; return False if the image is not open to hits."""
    try:
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_NOFOLLOW
        posix.close(posix.open(layout.lease(key, job), flags, 0o644))
    except FileNotFoundError:
        return False
    return True


def open_to_hits(layout: Layout, key: str) -> None:
    """Create the directory that lets hits take leases. Hold the key's lock."""
    import os  # not needed for a hit

    os.makedirs(layout.lease_directory(key), mode=0o755, exist_ok=True)


def close_to_hits(layout: Layout, key: str) -> bool:
    """Prevent new leases; return False if there is one. Hold the key's lock."""
    try:
        posix.rmdir(layout.lease_directory(key))
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            return False
        raise
    return True


def holders(layout: Layout, key: str) -> list[str]:
    """Return the jobs that hold a lease on an image."""
    return _names(layout.lease_directory(key))


def drop(layout: Layout, job: str) -> list[str]:
    """Remove all leases of a job; return the keys that it held."""
    held = []
    for key in _names(layout.leases):
        try:
            posix.unlink(layout.lease(key, job))
        except FileNotFoundError:
            continue
        held.append(key)
    return held


def give_back(layout: Layout, key: str, job: str) -> None:
    """Remove a job's lease on one image, if it has one."""
    try:
        posix.unlink(layout.lease(key, job))
    except FileNotFoundError:
        pass


def count(layout: Layout, job: str) -> int:
    """Return how many leases a job holds."""
    import os

    return sum(os.path.lexists(layout.lease(key, job)) for key in _names(layout.leases))


def all_jobs(layout: Layout) -> set[str]:
    """Return every job that holds a lease."""
    return {job for key in _names(layout.leases) for job in holders(layout, key)}


def by_job(layout: Layout) -> dict[str, list[str]]:
    """Return the keys of the images that each job holds leases on, ordered by job."""
    found: dict[str, list[str]] = {}
    for key in _names(layout.leases):
        for job in holders(layout, key):
            found.setdefault(job, []).append(key)
    return {job: found[job] for job in sorted(found, key=by_number)}


def by_number(job: str) -> tuple[int, str]:
    """Sort key for jobs, by number; other names are allowed."""
    return len(job), job


def _names(directory: str) -> list[str]:
    try:
        return posix.listdir(directory)
    except FileNotFoundError:
        return []
