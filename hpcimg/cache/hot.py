"""Hot records: everything that a cache hit needs to know, in one small file.

`hot/<uid or all>/<reference as written>` is created when an image was staged. It contains the image
for the reference under one configuration, how long that is trusted, the status of the image file,
and for a mounted image the file that it was copied from, whose status is checked each time. It
lives on the state's tmpfs and can be recreated; if anything in it does not match, the slow path is
taken.

Imports only posix and time, and for a mounted file what checks it: a cache hit reads it.
"""

import posix
import time

from hpcimg import atomic
from hpcimg.cache import lease
from hpcimg.cache.paths import Layout

_NAME_MAX = 250  # file systems allow 255


class Hit:
    """A complete image on which a job now holds a lease."""

    __slots__ = ("key", "path", "size_bytes", "uri")

    def __init__(self, key: str, path: str, uri: str, size_bytes: int = 0) -> None:
        self.key = key
        self.path = path
        self.uri = uri
        self.size_bytes = size_bytes


class Mounted:
    """The file that an image was copied from, its status, and whose rights check it.

    As in `hpcimg.look`; neither rights nor path contain blanks.
    """

    __slots__ = ("look", "path", "rights")

    def __init__(self, rights: str, path: str, look: str) -> None:
        self.rights = rights
        self.path = path
        self.look = look


def name_of(text: str, image_format: str) -> str:
    """Return the name for a reference that was requested in a format; "" for any format."""
    return f"{image_format} {text}" if image_format else text  # references contain no blanks


def remember(
    layout: Layout,
    text: str,
    hit: Hit,
    *,
    owner: int | None,
    fingerprint: str,
    fresh_until: float,
    mounted: Mounted | None = None,
) -> None:
    """Write the hot record for a reference as a user wrote it (`text`).

    `fresh_until` is a Unix time. There is none for a text too long for a file name.
    """
    import os

    from hpcimg import processes

    name = _file_name(text)
    if len(name) > _NAME_MAX:
        return
    seen = posix.stat(hit.path)
    directory = layout.hot_directory(owner)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lines = (
        fingerprint,
        repr(time.time()),
        repr(fresh_until),
        hit.key,
        hit.path,
        hit.uri,
        _look(seen),
        f"{mounted.rights} {mounted.path} {mounted.look}" if mounted else "",
    )
    temp = processes.temp_path(layout.state_tmp, "hot")
    atomic.write_file(f"{directory}/{name}", "\n".join(lines), temp=temp, mode=0o600)


def lookup(layout: Layout, text: str, *, job: str, uid: int, fingerprint: str) -> Hit | None:
    """Return a hit, leased to the job and marked as used now, or None.

    None only means that the slow path must be taken. This takes no lock and does not wait.
    """
    name = _file_name(text)
    for directory in (layout.hot_directory(uid), layout.hot_directory(None)):
        try:
            with open(f"{directory}/{name}", encoding="utf-8") as file:
                lines = file.read().split("\n")
            made_under, made, fresh_until, key, path, uri, look, mounted = lines
            # If the clock was set back, the record is from the future.
            if made_under != fingerprint or not float(made) <= time.time() < float(fresh_until):
                continue
            if mounted and not _still_there(*mounted.split(" ", 2)):
                continue
            # The lease precedes the check: an evictor that starts between the two sees it.
            if lease.take(layout, key, job) and _look(seen := posix.lstat(path)) == look:
                posix.utime(layout.meta(key))
                return Hit(key, path, uri, seen.st_size)
        except (OSError, ValueError):
            continue
    return None


def _still_there(rights: str, path: str, look: str) -> bool:
    from hpcimg.look import take  # rarely needed: most images are not mounted

    seen = take(path, rights)
    return seen != "" and seen == look


def _look(seen: posix.stat_result) -> str:
    return f"{seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_mode} {seen.st_uid}"


def _file_name(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F")
