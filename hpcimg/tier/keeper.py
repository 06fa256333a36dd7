"""The site tier's file operations, in a child process that is abandoned if the file system hangs.

    look up the reference -> there? -> copy the image
    otherwise: take its lease -> look again -> (the node fetches) -> put the image there

Every step is safe without the lease too, which only ensures that one node fetches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from typing import Any, NamedTuple

from hpcimg import atomic, processes
from hpcimg.config.values import Size
from hpcimg.errors import HpcimgError, from_dict
from hpcimg.locks import Lease
from hpcimg.tier import evict, places, records
from hpcimg.tier.child import Channel
from hpcimg.tier.places import Places, Trouble
from hpcimg.tier.records import Record

_CHUNK = 4 << 20  # parallel file systems like large reads
_TELL_EVERY_S = 0.5
_LOOK_FIRST_S, _LOOK_MOST_S = 0.1, 2.0
_SHOW_EVERY_S = 5.0
_SERVER_AGE_MAX_S = 3600.0  # the longest Retry-After that is obeyed, since a clock may be wrong


class Rules(NamedTuple):
    """The site's settings of its tier: where it is, its limits of time and size."""

    path: str
    lease_s: float
    wait_s: float
    ttl_s: float
    error_ttl_s: float
    max_size: Size
    max_age_s: float


class Asker(NamedTuple):
    """Names of the files of cached failures: of the reference, and of its host, "" for none."""

    ref: str
    host: str


class Keeper:
    """Answers one node's questions about one reference, `ref_id`.

    `job` identifies the requesting job among those of all clusters. `asker` selects the cached
    failures that apply.
    """

    def __init__(
        self, rules: Rules, ref_id: str, channel: Channel, *, job: str, asker: Asker
    ) -> None:
        self._rules = rules
        self._places = Places(rules.path)
        self._id = ref_id
        self._ref = f"{self._places.refs}/{ref_id}.json"
        # The failure of the reference, and the Retry-After of its host, for all its references.
        self._failure = f"{self._places.failures}/{asker.ref}.json"
        self._host = f"{self._places.failures}/{asker.host}.json" if asker.host else ""
        self._agreed = f"{self._places.jobs}/{job}.{ref_id}.json"
        self._progress = f"{self._places.leases}/{ref_id}.at"
        self._shown = 0.0
        self._channel = channel
        self._held: Lease | None = None
        self._heard = time.monotonic()

    def run(self) -> None:
        """Answer questions until the node's process is gone."""
        prepared = False
        while True:
            asked = self._channel.hear(1.0)
            if asked is None:
                # The node is suspended or hangs: another one shall fetch.
                if time.monotonic() - self._heard > self._rules.lease_s:
                    self._give_back()
                continue
            self._heard = time.monotonic()
            question, file = asked
            name = question.pop("do")
            if name == "live":
                self._show(str(question["at"]))
                continue
            try:
                if not prepared:
                    places.prepare(self._places)
                    prepared = True
                answer = getattr(self, f"do_{name}")(file=file, **question)
                self._channel.answer(answer)
            except Trouble as trouble:
                self._channel.fail(str(trouble))
            except OSError as error:
                at = error.filename or self._rules.path
                self._channel.fail(f"{at}: {error.strerror}")
            except HpcimgError as error:
                self._channel.fail(error.brief)
            except (RuntimeError, ValueError) as error:  # from the lease
                self._channel.fail(str(error))
            finally:
                if file is not None:
                    os.close(file)

    @property
    def _lease(self) -> Lease:
        if self._held is None:
            self._held = Lease(f"{self._places.leases}/{self._id}", self._rules.lease_s)
        return self._held

    def _show(self, at: str) -> None:
        """Show progress to the waiting nodes."""
        if not self._held or not self._held.held or time.monotonic() < self._shown:
            return
        self._shown = time.monotonic() + _SHOW_EVERY_S
        with contextlib.suppress(OSError):
            records.save(self._places, self._progress, {"at": at}, durable=False)

    def _give_back(self) -> None:
        if self._held and self._held.held:
            with contextlib.suppress(OSError):
                atomic.remove(self._progress)
        if self._held:
            self._held.release()

    def do_check(self, *, file: None) -> dict[str, Any]:
        """Write a file to the tier and remove it again."""
        path = records.temp_path(self._places)
        try:
            records.save(self._places, path, {})
        finally:
            atomic.remove(path)
        return {}

    def do_look(self, *, file: None) -> dict[str, Any]:
        """Look up the reference, without waiting."""
        record = self._load()
        fresh = record is not None and record.fresh(self._rules.ttl_s)
        return {"is": "there" if fresh else "missing", "record": record and record._asdict()}

    def do_find(self, *, anew: bool, time_s: float, file: None) -> dict[str, Any]:
        """Decide within `time_s` seconds where the node gets the image.

        `there`: from the tier. `ours`: it fetches, for all nodes; the record, if any, may be
        outdated. `failed`: a cached failure applies; with `anew`, these are ignored. `busy`:
        another node fetches, but makes no progress.
        """
        began, delay = time.monotonic(), _LOOK_FIRST_S
        moved, seen = began, records.read(self._progress)
        while True:
            record = self._load()
            if record and record.fresh(self._rules.ttl_s):
                self._give_back()
                with contextlib.suppress(OSError):  # mounted read-only: this use is not recorded
                    os.utime(record.path(self._places))
                return {"is": "there", "record": record._asdict()}
            error = None if anew else self._remembered()
            left_s = began + time_s - time.monotonic()
            if error and (error.retry_after_s is None or error.retry_after_s > left_s):
                return {"is": "failed", "error": error.to_dict()}
            if self._held and self._held.held:
                return {"is": "ours", "record": record and record._asdict()}
            # While a Retry-After applies, no node fetches.
            if error is None and self._lease.take():
                continue  # another node may have put it there a moment ago
            if (now_at := records.read(self._progress)) != seen:
                moved, seen = time.monotonic(), now_at
            waited_s = time.monotonic() - moved
            if left_s < _LOOK_MOST_S or (error is None and waited_s > self._rules.wait_s):
                return {"is": "busy", "record": None}
            self._channel.say(waiting_s=round(time.monotonic() - began, 1))
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 1.5, _LOOK_MOST_S)

    def do_copy(self, *, record: dict[str, Any], file: int) -> dict[str, Any]:
        """Copy an image into an empty file; `gone` if it has been evicted."""
        wanted = records.from_fields(record)
        with self._reading(wanted):
            try:
                image, seen = places.open_file(wanted.path(self._places))
            except FileNotFoundError:
                return {"is": "gone"}
            try:
                if seen.st_size != wanted.size_bytes:
                    raise Trouble(f"{wanted.path(self._places)} is truncated")
                self._copy(image, file)
            finally:
                os.close(image)
        return {"is": "there"}

    def do_damaged(self, *, record: dict[str, Any], file: None) -> dict[str, Any]:
        """Remove an image that does not match its record."""
        atomic.remove(records.from_fields(record).path(self._places))
        return {}

    def do_stock(self, *, record: dict[str, Any], file: int) -> dict[str, Any]:
        """Put an image and its reference into the tier, and release the lease."""
        new = records.from_fields(record)
        try:
            self._keep(new, file)
            known = records.load(self._ref)
            # A record from the future was written by a node with a wrong clock.
            if known is None or not new.resolved < known.resolved <= time.time():
                records.save(self._places, self._ref, new._asdict())
            atomic.remove(self._failure)
        finally:
            self._give_back()
        return {}

    def do_agreed(self, *, file: None) -> dict[str, Any]:
        """Return the record of the image that the nodes of the job agreed on, if any."""
        record = records.load(self._agreed)
        return {"record": record and record._asdict()}

    def do_agree(self, *, record: dict[str, Any], shared: bool, file: int) -> dict[str, Any]:
        """Propose an image to the nodes of the job; return the one that they agreed on.

        A `shared` image is in the tier before other nodes can learn of it.
        """
        new = records.from_fields(record)
        if records.load(self._agreed) is None:
            if shared:
                self._keep(new, file)
            records.save_first(self._places, self._agreed, new._asdict())
        return self.do_agreed(file=None)

    def do_trim(self, *, dry_run: bool, when_due: bool, file: None) -> dict[str, Any]:
        """Evict; with `when_due`, only if the last eviction was long ago."""
        if when_due and not evict.due(self._places):
            return {"busy": False, "images": [], "others": 0, "held_bytes": 0}
        report = evict.trim(
            self._places, max_size=self._rules.max_size, max_age_s=self._rules.max_age_s,
            lease_s=self._rules.lease_s, dry_run=dry_run,
        )  # fmt: skip
        return report._asdict()

    def do_fail(self, *, error: dict[str, Any], file: None) -> dict[str, Any]:
        """Record why the image cannot be fetched, and release the lease."""
        fields = {"time": time.time(), "error": error}
        paths = [self._failure]
        if self._host and error.get("retry_after_s"):
            paths.append(self._host)
        try:
            for path in paths:
                records.save(self._places, path, fields, durable=False)
        finally:
            self._give_back()
        return {}

    def do_release(self, *, file: None) -> dict[str, Any]:
        """Release the lease."""
        self._give_back()
        return {}

    def _load(self) -> Record | None:
        record = records.load(self._ref)
        return record if record and self._has(record) else None

    def _has(self, record: Record) -> bool:
        try:
            seen = os.lstat(record.path(self._places))
        except FileNotFoundError:
            return False
        return places.is_ours(seen) and seen.st_size == record.size_bytes

    def _remembered(self) -> HpcimgError | None:
        """Return a cached failure that applies now, of any node, or None."""
        error = self._failed_before(self._failure)
        return error or (self._failed_before(self._host) if self._host else None)

    def _failed_before(self, path: str) -> HpcimgError | None:
        fields = records.read(path)
        try:
            if fields is None:
                return None
            error = from_dict(fields["error"])
            age_s = time.time() - float(fields["time"])
        except (KeyError, TypeError, ValueError):
            return None
        wished_s = error.retry_after_s
        for_s = self._rules.error_ttl_s if wished_s is None else min(wished_s, _SERVER_AGE_MAX_S)
        if not 0 <= age_s < for_s:
            return None
        if wished_s is not None:
            error.retry_after_s = for_s - age_s
        return error

    def _keep(self, new: Record, file: int) -> None:
        if not self._has(new):
            self._check_room(new.size_bytes)
            self._put(new, new.path(self._places), file)

    def _check_room(self, size_bytes: int) -> None:
        seen = os.statvfs(self._places.images)
        if seen.f_bavail * seen.f_frsize < size_bytes:
            raise Trouble(f"{self._places.path} is full")

    def _put(self, new: Record, path: str, file: int) -> None:
        temp = records.temp_path(self._places)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        image = os.open(temp, flags, 0o600)
        try:
            try:
                if self._copy(file, image) != new.sha256:
                    raise Trouble(f"the image of {new.uri} has changed since it was verified")
                os.fchmod(image, 0o444)
                os.fsync(image)
            finally:
                os.close(image)
            os.rename(temp, path)
        except BaseException:
            atomic.remove(temp)
            raise
        atomic.sync_directory(self._places.images)

    def _copy(self, source: int, target: int) -> str:
        """Copy with read and write, so that a killed process stops soon; return the sha256.

        copy_file_range(2) would go on in the kernel, into a file that is reused by then.
        """
        digest, done, told = hashlib.sha256(), 0, 0.0
        while data := os.pread(source, _CHUNK, done):
            digest.update(data)
            view = memoryview(data)
            while view:
                written = os.pwrite(target, view, done)
                done += written
                view = view[written:]
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                self._channel.say(bytes=done)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _reading(self, record: Record) -> Any:
        """Keep the image from being evicted, unless the tier is mounted read-only."""
        mark = f"{self._places.readers}/{record.sha256}~{processes.tag()}~{os.uname().nodename}"
        try:
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        except OSError:  # mounted read-only
            yield
            return
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(mark)
