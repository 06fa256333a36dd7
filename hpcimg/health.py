"""Whether this node can stage images: checks that need neither the network nor Slurm.

Each returns findings and raises nothing. They change nothing, except for a small file that is
written and removed again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from hpcimg import acl, processes
from hpcimg.cache import directories as cache_directories
from hpcimg.cache import evict, filesystem, index, policy, trial
from hpcimg.cache.paths import Layout
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError, from_os_error
from hpcimg.image import verify
from hpcimg.node import limits, verified_by
from hpcimg.units import format_size
from hpcimg.worker import accounts
from hpcimg.worker.seal import has_leases

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
PACKAGES = ("requests", "filelock", "tenacity")
PARTS_OF_PYTHON = ("_ctypes", "_ssl")  # missing where their libraries were when it was built
_TMPFS = frozenset({"tmpfs", "ramfs"})
_HARD_LINKS = "/proc/sys/fs/protected_hardlinks"
_CLOCK_S = 86400.0
_NOBODY = 65534


class Finding(NamedTuple):
    """The result of one check: OK, NOTE or PROBLEM, with the texts of an error."""

    check: str
    result: str
    what: str
    why: str = ""
    do: str = ""

    @property
    def sentence(self) -> str:
        """All three texts as one."""
        what = f"{self.what}: {self.why}" if self.why else self.what
        return f"{what}. {self.do}" if self.do else what


def node() -> tuple[Config | None, list[Finding]]:
    """Run all checks of this module; return the configuration if it can be read."""
    try:
        conf = config.load()
    except HpcimgError as error:
        return None, [explained("configuration", error)]
    layout = Layout(conf.cache_path, conf.state_path)
    findings = [Finding("configuration", OK, "it can be read and is valid")]
    findings += [*directories(layout), *_seals(layout), *private(layout)]
    findings += [*_space(conf, layout), _state(layout)]
    return conf, [*findings, _account(conf), *_verifier(conf), *_packages(), _clock()]


def explained(check: str, error: HpcimgError) -> Finding:
    """Return an error as a problem found by a check."""
    return Finding(check, PROBLEM, error.what, error.why, error.do)


def directories(layout: Layout) -> list[Finding]:
    """Check the cache and state directories: type, owner, mode, and that they are writable."""
    try:
        cache_directories.check(layout)
    except HpcimgError as error:
        return [explained("directories", error)]
    return [_written(check, *places) for check, *places in trial.places(layout)]


def private(layout: Layout) -> list[Finding]:
    """Check that single users can be given access to files, and cannot keep evicted ones."""
    found = []
    if os.path.isdir(layout.cache) and not acl.supported(layout.cache):
        what = f"the file system of {layout.cache} has no POSIX access control lists"
        why = "jobs with private images fail on this node"
        found.append(Finding("private", PROBLEM, what, why, "Mount it with `acl`."))
    if os.path.isdir(layout.state) and not acl.supported(layout.state):
        what = f"the file system of {layout.state} has no POSIX access control lists"
        why = "everyone in a user's group can read which images the user's jobs requested"
        found.append(Finding("private", NOTE, what, why))
    with contextlib.suppress(OSError), open(_HARD_LINKS, encoding="ascii") as file:
        if file.read().strip() == "0":
            what = "users can make hard links to other users' files"
            why = "an image linked by a user keeps taking disk space after its eviction"
            do = "Set fs.protected_hardlinks = 1."
            found.append(Finding("private", PROBLEM, what, why, do))
    return found or [Finding("private", OK, "images can be made readable by a single user")]


def full(
    held_bytes: int, free_bytes: int, limits: policy.Limits, *, images: int, free_files: int | None
) -> list[str]:
    """Return which limits on cache size and free disk space are violated."""
    problems = []
    if limits.max_images and images > limits.max_images:
        problems.append(f"the cache holds {images} images and layers, more than its max_images")
    if held_bytes > limits.max_size:
        problems.append(f"the cache holds {format_size(held_bytes)}, more than its max_size")
    if free_bytes < limits.min_free:
        floor = format_size(limits.min_free)
        problems.append(f"{format_size(free_bytes)} are free on its disk, {floor} should be")
    elif free_files is not None and free_files < limits.min_free_files:
        floor = str(limits.min_free_files)
        problems.append(f"{free_files} inodes are free on its disk, {floor} should be")
    return problems


def _written(check: str, root: str, tmp: str) -> Finding:
    try:
        return Finding(check, OK, trial.write(root, tmp))
    except HpcimgError as error:
        return explained(check, error)


def _seals(layout: Layout) -> list[Finding]:
    """Check that the kernel reports who has a file of the cache open for writing."""
    if not os.path.isdir(layout.tmp):
        return []
    path = processes.temp_path(layout.tmp, "health")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            known = has_leases(descriptor)
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError:  # the previous check says more
        return []
    if known:
        return []
    what = f"the file system of {layout.cache} does not support leases (fcntl(2), F_SETLEASE)"
    why = "hpcimg cannot detect whether an escaped process still writes to an image"
    return [Finding("leases", PROBLEM, what, why, "Use ext4, xfs, btrfs or a tmpfs.")]


def _space(conf: Config, layout: Layout) -> list[Finding]:
    if not os.path.isdir(layout.cache):
        return []
    try:
        sizes = [entry.size_bytes for entry, _ in index.entries(layout)]
        held, free, files = sum(sizes), evict.free_on_disk(layout), evict.free_files(layout)
        problems = full(held, free, limits(conf), images=len(sizes), free_files=files)
    except HpcimgError as error:
        return [explained("space", error)]
    except OSError as error:
        return [explained("space", from_os_error(error, layout.cache))]
    do = "`hpcimg gc` evicts what it can; `hpcimg ls` shows what is in use."
    found = [Finding("space", PROBLEM, problem, do=do) for problem in problems]
    text = f"{format_size(held)} in the cache, {format_size(free)} free on its disk"
    if files is not None:
        text += f", and {files} inodes"
    return found or [Finding("space", OK, text)]


def _state(layout: Layout) -> Finding:
    kind = filesystem.kind(layout.state)
    if kind in _TMPFS:
        return Finding("tmpfs", OK, f"{layout.state} is on a {kind}")
    what = f"{layout.state} is on {kind or 'an unknown file system'}, not on a tmpfs"
    return Finding(
        "tmpfs", NOTE, what, "after a reboot, leases of lost jobs stay until `hpcimg gc` runs"
    )


def _account(conf: Config) -> Finding:
    try:
        account = accounts.unprivileged(conf.account)
    except HpcimgError as error:
        return explained("account", error)
    if account is None:
        return Finding("account", NOTE, "not checked: only root fetches as another account")
    if account.uid == _NOBODY:
        what = f"[stage] account is {conf.account}, which other services use too"
        why = "any of them could interfere with a conversion"
        return Finding("account", PROBLEM, what, why, "Create a dedicated account.")
    return Finding("account", OK, f"images are fetched as uid {account.uid}")


def _verifier(conf: Config) -> list[Finding]:
    """Check, as the unprivileged account, that images can be verified."""
    if conf.verify == "none":
        return []
    try:
        with accounts.acting_as(accounts.unprivileged(conf.account)):
            verify.check_ready(conf.verify, conf.keyring)
    except HpcimgError as error:
        return [explained("verify", error)]
    return [Finding("verify", OK, f"images can be verified by {verified_by(conf)}")]


def _packages() -> list[Finding]:
    found = []
    if names := _missing(PARTS_OF_PYTHON):
        what = f"the Python that the hooks use was built without {names}"
        do = "Use another one for hpcimg, such as the distribution's."
        found.append(Finding("packages", PROBLEM, what, do=do))
    if names := _missing(PACKAGES):
        what = f"Python packages are missing: {names}"
        do = "Install them for the Python that the hooks use, or reinstall hpcimg."
        found.append(Finding("packages", PROBLEM, what, do=do))
    return found or [Finding("packages", OK, f"{', '.join(PACKAGES)} are installed")]


def _missing(names: Sequence[str]) -> str:
    return " ".join(name for name in names if importlib.util.find_spec(name) is None)


def _clock() -> Finding:
    now, installed = time.time(), os.stat(__file__).st_mtime
    if now > installed - _CLOCK_S:
        return Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S %z"))
    what = f"the clock says {time.strftime('%Y-%m-%d')}, before hpcimg was installed"
    return Finding("clock", PROBLEM, what, "certificates are then rejected", "Set the clock.")
