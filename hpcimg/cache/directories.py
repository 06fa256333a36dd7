"""The directories of the cache and the state: made where they are missing, and checked."""

from __future__ import annotations

import os
import stat

from hpcimg.cache import filesystem
from hpcimg.cache.paths import Layout
from hpcimg.errors import CacheUnusable, ConfigError, HpcimgError, from_os_error


def prepare(layout: Layout) -> None:
    """Make the directories that are missing and check that they can do their work.

    Raises CacheUnusable: not a directory, not writable, of another owner, open for
    others to write, or `tmp/` on another file system than the images. Raises
    ConfigError for a network file system.
    """
    _check_own_disk(layout)
    for path, mode in _directories(layout).items():
        _prepare_directory(path, mode, root=path in (layout.cache, layout.state))
    _check_file_system(layout)


def check(layout: Layout) -> None:
    """Check what `prepare` does, of the directories that are there, and make none."""
    _check_own_disk(layout)
    for path in _directories(layout):
        if os.path.lexists(path):
            _check_directory(path, root=path in (layout.cache, layout.state))
    if os.path.exists(layout.tmp) and os.path.exists(layout.images):
        _check_file_system(layout)


def _directories(layout: Layout) -> dict[str, int]:
    """Return all directories with their modes, parents first."""
    shared, private = 0o755, 0o700
    return {
        layout.cache: shared, layout.state: shared,
        layout.images: shared, layout.blobs: private, layout.users: 0o711,
        layout.metas: shared, layout.refs: shared, layout.pins: shared,
        layout.locks: private, layout.tmp: private, layout.work: 0o711,
        layout.trash: private,
        layout.jobs: 0o711, layout.leases: shared, layout.inflight: shared,
        layout.hot: private, layout.failures: private, layout.leaders: private,
        layout.state_tmp: private,
    }  # fmt: skip


def _check_own_disk(layout: Layout) -> None:
    for path in (layout.cache, layout.state):
        if found := filesystem.network(path):
            raise ConfigError(
                f"{path} is on a network file system ({found})",
                why="other nodes would evict what jobs of this one use, and locks and leases "
                "are this node's alone",
                do="Name a directory on a disk of the node's own in hpcimg.conf.",
            )


def _check_file_system(layout: Layout) -> None:
    if os.stat(layout.tmp).st_dev != os.stat(layout.images).st_dev:
        raise CacheUnusable(
            f"{layout.tmp} is on another file system than {layout.images}",
            why="an image cannot be renamed from one to the other",
            do="Put all of the cache directory on one file system.",
        )


def _prepare_directory(path: str, mode: int, *, root: bool) -> None:
    try:
        if root:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        try:
            os.mkdir(path, mode)
            os.chmod(path, mode)  # whatever the umask is
        except FileExistsError:
            pass
    except OSError as error:
        raise _unusable(error, path) from error
    _check_directory(path, root=root)


def _check_directory(path: str, *, root: bool) -> None:
    try:
        seen = os.stat(path, follow_symlinks=root)
        if not stat.S_ISDIR(seen.st_mode):
            raise CacheUnusable(f"{path} is not a directory", do="Move it out of the way.")
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "not writable", path)
    except OSError as error:
        raise _unusable(error, path) from error
    if seen.st_uid != os.geteuid() or seen.st_mode & stat.S_IWOTH:
        raise CacheUnusable(
            f"{path} is not safe",
            why=f"its owner is uid {seen.st_uid}, its mode {stat.S_IMODE(seen.st_mode):04o}",
            do=f"It must belong to uid {os.geteuid()} and be writable for nobody else.",
        )


def _unusable(error: OSError, path: str) -> HpcimgError:
    do = "" if os.geteuid() == 0 else "If this is a node's own cache, be root."
    return from_os_error(error, path, do=do)
