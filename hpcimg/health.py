"""Whether this node can stage images: checks that need no network and no Slurm.

Each returns findings and raises nothing; none changes anything but for a small
file that is written and removed again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from typing import NamedTuple

from hpcimg import processes
from hpcimg.cache import directories as cache_directories
from hpcimg.cache import evict, policy, store
from hpcimg.cache.paths import Layout
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError, from_os_error
from hpcimg.image import verify
from hpcimg.node import limits, verified_by
from hpcimg.units import format_size
from hpcimg.worker import accounts

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
PACKAGES = ("requests", "filelock", "tenacity")
_TMPFS = frozenset({"tmpfs", "ramfs"})
_WRITTEN = b"hpcimg" * 1000
_CLOCK_S = 86400.0


class Finding(NamedTuple):
    """What one check found: OK, NOTE or PROBLEM, with the texts that an error has."""

    check: str
    result: str
    what: str
    why: str = ""
    do: str = ""


def node() -> tuple[Config | None, list[Finding]]:
    """Do all checks of this module; return the configuration where it can be read."""
    try:
        conf = config.load()
    except HpcimgError as error:
        return None, [explained("configuration", error)]
    layout = Layout(conf.cache_path, conf.state_path)
    findings = [Finding("configuration", OK, "it can be read and is valid")]
    findings += [*directories(layout), *_space(conf, layout), _state(layout)]
    return conf, [*findings, _account(conf), *_verifier(conf), *_packages(), _clock()]


def explained(check: str, error: HpcimgError) -> Finding:
    """Return an error as the problem that a check found."""
    return Finding(check, PROBLEM, error.what, error.why, error.do)


def directories(layout: Layout) -> list[Finding]:
    """Check the cache and state directories: what they are, whose, that they can be written."""
    try:
        cache_directories.check(layout)
    except HpcimgError as error:
        return [explained("directories", error)]
    return [
        _written("cache", layout.cache, layout.tmp),
        _written("state", layout.state, layout.state_tmp),
    ]


def full(held_bytes: int, free_bytes: int, limits: policy.Limits) -> list[str]:
    """Return what is wrong with how much the cache holds and its disk has left."""
    problems = []
    if held_bytes > limits.max_size:
        problems.append(f"the cache holds {format_size(held_bytes)}, more than its max_size")
    if free_bytes < limits.min_free:
        floor = format_size(limits.min_free)
        problems.append(f"{format_size(free_bytes)} are free on its disk, {floor} should be")
    return problems


def _written(check: str, root: str, tmp: str) -> Finding:
    """Write a file as Prolog does, and read it again."""
    if not os.path.isdir(root):
        return _to_be_made(check, root)
    path = processes.temp_path(tmp if os.path.isdir(tmp) else root, "health")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, _WRITTEN)
            os.fsync(descriptor)
            # What was read without this came from memory, not from the disk.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if os.pread(descriptor, len(_WRITTEN) + 1, 0) != _WRITTEN:
                what = f"{root} does not give back what was written to it"
                return Finding(check, PROBLEM, what, do="Look at its disk.")
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError as error:
        return explained(check, from_os_error(error, root, cannot="be written"))
    return Finding(check, OK, f"{root} can be written and read")


def _to_be_made(check: str, path: str) -> Finding:
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
        return Finding(check, OK, f"{path} will be made by the first job with an image")
    return Finding(check, PROBLEM, f"{path} cannot be made", f"{above} cannot be written")


def _space(conf: Config, layout: Layout) -> list[Finding]:
    if not os.path.isdir(layout.cache):
        return []
    try:
        held = sum(entry.size_bytes for entry in store.entries(layout))
        free = evict.free_on_disk(layout)
        problems = full(held, free, limits(conf))
    except HpcimgError as error:
        return [explained("space", error)]
    except OSError as error:
        return [explained("space", from_os_error(error, layout.cache))]
    do = "`hpcimg gc` frees what can go; `hpcimg ls` shows what is in use."
    found = [Finding("space", PROBLEM, problem, do=do) for problem in problems]
    texts = f"{format_size(held)} in the cache, {format_size(free)} free on its disk"
    return found or [Finding("space", OK, texts)]


def _state(layout: Layout) -> Finding:
    kind = _file_system(layout.state)
    if kind in _TMPFS:
        return Finding("tmpfs", OK, f"{layout.state} is on a {kind}")
    what = f"{layout.state} is on {kind or 'an unknown file system'}, not on a tmpfs"
    return Finding("tmpfs", NOTE, what, "leases and jobs that a reboot ended stay until a `gc`")


def _file_system(path: str) -> str:
    """Return the type of the file system that a path is on or would be made on."""
    path = os.path.realpath(path)
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, point, found, *_ = line.split(" ")
            # The last one at a place covers those before it.
            if f"{path}/".startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, found
    return kind


def _account(conf: Config) -> Finding:
    try:
        account = accounts.unprivileged(conf.account)
    except HpcimgError as error:
        return explained("account", error)
    if account is None:
        return Finding("account", NOTE, "not looked for: only root fetches as another account")
    return Finding("account", OK, f"images are fetched as uid {account.uid}")


def _verifier(conf: Config) -> list[Finding]:
    """Look, as the account that fetches, for what says whether an image is trusted."""
    if conf.verify == "none":
        return []
    try:
        with accounts.acting_as(accounts.unprivileged(conf.account)):
            verify.check_ready(conf.verify, conf.keyring)
    except HpcimgError as error:
        return [explained("verify", error)]
    return [Finding("verify", OK, f"images can be verified by {verified_by(conf)}")]


def _packages() -> list[Finding]:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return [Finding("packages", OK, f"{', '.join(PACKAGES)} are installed")]
    names = " ".join(missing)
    do = "Install them for the Python that the hooks use, or install hpcimg again."
    return [Finding("packages", PROBLEM, f"Python packages are missing: {names}", do=do)]


def _clock() -> Finding:
    now, installed = time.time(), os.stat(__file__).st_mtime
    if now > installed - _CLOCK_S:
        return Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S %z"))
    what = f"the clock says {time.strftime('%Y-%m-%d')}, before hpcimg was installed"
    return Finding("clock", PROBLEM, what, "certificates are refused then", "Set the clock.")
