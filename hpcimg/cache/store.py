"""The cache on disk: its directories, its complete images, and their records.

An image is published by a rename within one file system after its file was flushed; its record is
written before, so whoever finds an image also finds its record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from hpcimg import acl, atomic, processes
from hpcimg.cache import events, trash
from hpcimg.cache.paths import Layout, owned
from hpcimg.errors import CacheUnusable, explained, from_os_error

log = logging.getLogger(__name__)
VERSION = 1
BLOB = "blob"  # the extension of a layer or config that is kept to be shared by images
_BEFORE_S = 1.0
GRACE_S = 60.0  # how long a server that did not answer is left alone
_ORPHAN_AGE_S = 3600.0
# Converted images under a digest that an archive stated and nobody had compared with its layers.
_NAMED_BY_SOURCE = re.compile(r"(u[0-9]+-)?sha256-[0-9a-f]{64}-[a-z]+")
_LARGE_BYTES = 1 << 30  # unlinking a file of this size may take a while
T = TypeVar("T")


class Entry(NamedTuple):
    """One complete image, or one blob of images in layers.

    Times are Unix times, `owner` is the uid that the image is private to. `source` is the digest of
    the manifest of a converted image, "" if there was none. `verified` is the site's policy at the
    time when the image was verified.
    """

    key: str
    extension: str
    sha256: str
    size_bytes: int
    architecture: str
    uris: tuple[str, ...]
    fetched: float
    owner: int | None = None
    source: str = ""
    verified: str = ""

    @property
    def private(self) -> bool:
        return self.owner is not None

    @property
    def is_blob(self) -> bool:
        return self.extension == BLOB

    @property
    def is_misnamed(self) -> bool:
        """Whether its key is in a format of earlier releases, which anybody could forge."""
        return _NAMED_BY_SOURCE.fullmatch(self.key) is not None

    def unused(self, last_used: float) -> bool:
        """Tell from the time of its last use whether there was none since it was fetched."""
        # The kernel's own clock is some milliseconds late.
        return last_used < self.fetched - _BEFORE_S / 2

    def serves(self, policy: str) -> bool:
        """Tell whether it may be handed out under this verification policy."""
        return policy in ("", self.verified) and not self.is_misnamed


class Ref(NamedTuple):
    """What a reference resolved to, and when.

    `validator` is sent to the source the next time: an ETag, a digest, a modification time. Until
    `grace` a server that did not answer is not asked again.
    """

    uri: str
    key: str
    validator: str
    resolved: float
    pinned: bool = False
    grace: float = 0.0

    def fresh_until(self, ttl_s: float) -> float:
        """Return the Unix time until which this is trusted."""
        return float("inf") if self.pinned else max(self.resolved + ttl_s, self.grace)

    def fresh(self, ttl_s: float, now: float) -> bool:
        """Tell whether it is trusted. A clock that was set back makes it stale, not eternal."""
        return self.pinned or self.resolved <= now < self.fresh_until(ttl_s)


def load_record(layout: Layout, key: str) -> Entry | None:
    """Return the record of an image, whether or not its file exists; or None."""
    entry = _load(layout.meta(key), Entry)
    return entry if entry is not None and entry.key == key else None


def load_entry(layout: Layout, key: str) -> Entry | None:
    """Return a complete image, or None if its file or its record is missing."""
    entry = load_record(layout, key)
    return entry if entry is not None and whole(layout, entry) else None


def whole(layout: Layout, entry: Entry) -> bool:
    """Tell whether the file of an image exists, has the right length, and belongs to us."""
    try:
        seen = os.lstat(path_of(layout, entry))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_os_error(error) from error
    if not stat.S_ISREG(seen.st_mode) or seen.st_size != entry.size_bytes:
        log.warning("%s is not what was stored (%d bytes now)", entry.key, seen.st_size)
        return False
    if is_foreign(seen):
        log.warning("%s belongs to uid %d and is ignored", entry.key, seen.st_uid)
        return False
    return True


def is_foreign(seen: os.stat_result) -> bool:
    """Tell whether a file in root's cache belongs to another user, who may have changed it."""
    return seen.st_uid != 0 and os.geteuid() == 0


def entries(layout: Layout) -> Iterator[Entry]:
    """Return all complete images and all blobs, in no particular order."""
    for key in keys(layout):
        entry = load_entry(layout, key)
        if entry is not None:
            yield entry


def keys(layout: Layout) -> list[str]:
    """Return the keys of all records, complete or not, in no particular order."""
    return [n.removesuffix(".json") for n in _listdir(layout.metas) if n.endswith(".json")]


def save_entry(layout: Layout, entry: Entry, *, durable: bool = True) -> None:
    """Store the record of an image; readable for all, or for root if it is private."""
    fields = {"version": VERSION, **entry._asdict()}
    mode = 0o600 if entry.private else 0o644
    _save(layout, layout.meta(entry.key), fields, mode, durable=durable)


def ref_id(uri: str, owner: int | None) -> str:
    """Return the name of a reference's file and lock; private ones are per user."""
    digest = hashlib.sha256(uri.encode()).hexdigest()
    return owned(digest, owner)


def load_ref(layout: Layout, ref_id: str) -> Ref | None:
    """Return what a reference last resolved to, or None."""
    ref = _load(layout.ref(ref_id), Ref)
    if ref and ref.grace > time.time() + GRACE_S:  # the clock has been set back since
        return ref._replace(grace=0.0)
    return ref


def refs_of(layout: Layout, uri: str) -> list[Ref]:
    """Return what a reference resolved to for all, and for each user whose records we can read."""
    name = f"{ref_id(uri, None)}.json"
    ids = [n.removesuffix(".json") for n in _listdir(layout.refs) if n.endswith(name)]
    return [ref for one in sorted(ids) if (ref := load_ref(layout, one))]


def save_ref(layout: Layout, ref_id: str, ref: Ref) -> None:
    """Store what a reference resolved to; readable for all, or for root if it is private.

    It is not flushed to the disk: without it, the source is asked again.
    """
    mode = 0o600 if ref.key.startswith("u") else 0o644
    fields = {"version": VERSION, **ref._asdict()}
    _save(layout, layout.ref(ref_id), fields, mode, durable=False)


def path_of(layout: Layout, entry: Entry) -> str:
    """Return the path of the image file."""
    return layout.image(entry.key, entry.extension, entry.owner)


def last_used(layout: Layout, key: str) -> float:
    """Return when the image was last given to a job, as a Unix time.

    Kept as the modification time of its record: one system call on a hit, and independent of
    readers of the image and of mount options.
    """
    try:
        return os.stat(layout.meta(key)).st_mtime
    except FileNotFoundError:
        return 0.0


def mark_used(layout: Layout, key: str) -> None:
    """Record that the image is given to a job now, if it exists."""
    with contextlib.suppress(FileNotFoundError):  # evicted meanwhile, if no lease protects it
        os.utime(layout.meta(key))


def mark_unused(layout: Layout, entry: Entry) -> None:
    """Record that no job has used the image since it was fetched."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(layout.meta(entry.key), (entry.fetched - _BEFORE_S, entry.fetched - _BEFORE_S))


def unused(layout: Layout, key: str) -> bool:
    """Tell whether the image is marked so."""
    entry = load_record(layout, key)
    return entry is not None and entry.unused(last_used(layout, key))


@contextmanager
def unfinished(layout: Layout, name: str) -> Iterator[tuple[str, int]]:
    """Yield (path, descriptor) of a new empty file in tmp/, removed at the end if still there.

    The file's name identifies the process that made it, so that leftovers can be recognized.
    """
    path = processes.temp_path(layout.tmp, f"{os.urandom(4).hex()}.{name}")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise from_os_error(error) from error
    try:
        yield path, descriptor
    finally:
        large = os.fstat(descriptor).st_blocks * 512 > _LARGE_BYTES
        os.close(descriptor)
        if large:
            with contextlib.suppress(OSError):
                trash.put(layout, path)
            trash.empty(layout)
        atomic.remove(path)


def check_private(layout: Layout, descriptor: int) -> None:
    """Raise CacheUnusable if a file of the cache cannot be made readable for a single user."""
    if os.geteuid() == 0 and not acl.supported(descriptor):
        raise CacheUnusable(
            "private images cannot be cached on this node",
            why=f"the file system of {layout.cache} has no POSIX access control lists",
        )


@contextmanager
def work_directory(layout: Layout, account: int | None) -> Iterator[str]:
    """Yield the path of an empty directory owned by a uid (None: ours), removed at the end."""
    path = processes.temp_path(layout.work, os.urandom(8).hex())
    try:
        with explained():
            os.mkdir(path, 0o700)
            if account is not None:
                os.chown(path, account, -1)
        yield path
    finally:
        with contextlib.suppress(OSError):  # the next sweep tries again
            trash.put(layout, path)
        trash.empty(layout)


def publish(
    layout: Layout, entry: Entry, temp: str, descriptor: int, *, durable: bool = True
) -> None:
    """Make a verified file in tmp/ the complete image of `entry`.

    After this returns, image and record are on the disk under their names, or without `durable`
    will be soon. Before the rename nobody finds the image; a crash at any point leaves all or
    nothing of it. Raises NoRoom, CacheUnusable.
    """
    target = path_of(layout, entry)
    try:
        if entry.owner is not None:
            directory = os.path.dirname(target)
            os.makedirs(directory, mode=0o711, exist_ok=True)
        # Space preallocated beyond the end would stay on the disk uncounted. By its name, because
        # the descriptor is read-only.
        os.truncate(f"/proc/self/fd/{descriptor}", entry.size_bytes)
        os.fchmod(descriptor, 0o400 if entry.private else 0o444)
        # It stays owned by root: an owner could change it. Only root reads layers.
        if entry.owner and os.geteuid() == 0 and not entry.is_blob:
            acl.let_read(descriptor, entry.owner)
        if durable:
            os.fsync(descriptor)
        save_entry(layout, entry, durable=durable)
        os.rename(temp, target)
        if durable:
            atomic.sync_directory(os.path.dirname(target))
    except OSError as error:
        raise from_os_error(error) from error


def forget(layout: Layout, entry: Entry) -> None:
    """Remove an image and its record. Hold its lock, with no lease on it.

    The image goes first: a record without an image is harmless.
    """
    atomic.remove(path_of(layout, entry))
    atomic.remove(layout.meta(entry.key))


def sweep(layout: Layout) -> int:
    """Clear the tmp and work directories of leftovers of dead processes; return how many.

    Needs no lock: a leftover is recognized by its dead maker. Never raises, and takes a second or
    two: no job should pay for another's leftovers. What cannot be cleared is logged, recorded as an
    event, and tried again the next time.
    """
    swept = 0
    failed: OSError | None = None
    for directory in (layout.tmp, layout.work, layout.state_tmp):
        try:
            names = _listdir(directory)
        except OSError as error:
            failed, names = error, []
        for name in names:
            path = f"{directory}/{name}"
            try:
                if processes.alive(name):
                    continue
                on_disk = directory != layout.state_tmp
                swept += trash.put(layout, path) if on_disk else _remove(path)
            except OSError as error:
                failed = error
    if failed:
        log.warning("leftovers of killed processes stay for now: %s", failed)
        events.record(layout.events, "sweep_failed", message=str(failed))
    trash.empty(layout)
    return swept


def _remove(path: str) -> bool:
    try:
        return atomic.remove(path)
    except IsADirectoryError:  # a job's, which was not yet in its place
        import shutil  # rarely needed

        shutil.rmtree(path)
        return True


@explained()
def sweep_orphans(layout: Layout) -> int:
    """Remove images without a record, and records and refs without an image.

    Recent files stay: their counterpart may be about to be written.
    """
    users = [f"{layout.users}/{uid}" for uid in _listdir(layout.users)]
    swept = 0
    for directory in (layout.metas, layout.refs, layout.images, layout.blobs, *users):
        for name in _listdir(directory):
            path = f"{directory}/{name}"
            key = _key_of_ref(path) if directory == layout.refs else name.partition(".")[0]
            if _old(path) and load_entry(layout, key) is None:
                swept += atomic.remove(path)
    return swept


def _key_of_ref(path: str) -> str:
    ref = _load(path, Ref)
    return ref.key if ref else ""


def _old(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _ORPHAN_AGE_S
    except FileNotFoundError:
        return False


def _save(
    layout: Layout, path: str, fields: dict[str, object], mode: int, *, durable: bool
) -> None:
    temp = processes.temp_path(layout.tmp, os.path.basename(path))
    try:
        atomic.write_file(
            path, json.dumps(fields, indent=1) + "\n", temp=temp, mode=mode, durable=durable
        )
    except OSError as error:
        raise from_os_error(error) from error


def _load(path: str, make: Callable[..., T]) -> T | None:
    """Read what `_save` wrote; None if it is missing or invalid."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        if fields.pop("version") != VERSION:
            return None
        return make(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except (FileNotFoundError, PermissionError):  # private images of others do not exist for us
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s cannot be parsed and is ignored: %s", path, error)
        return None
    except OSError as error:
        raise from_os_error(error) from error


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
