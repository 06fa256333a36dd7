"""What is done on the site's file system, in a process that may be left behind there.

    look for the reference -> there? -> copy it
    otherwise: take its lease -> look again -> (the node fetches) -> put it there

All of it is right without the lease too, which only sees to it that one node fetches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from typing import Any, NamedTuple

from hpcimg import atomic, processes
from hpcimg.errors import HpcimgError, from_dict
from hpcimg.locks import Lease
from hpcimg.tier import places, records
from hpcimg.tier.child import Channel
from hpcimg.tier.places import Places, Trouble
from hpcimg.tier.records import Record

_CHUNK = 4 << 20  # parallel file systems like large reads
_TELL_EVERY_S = 0.5
_LOOK_FIRST_S, _LOOK_MOST_S = 0.1, 2.0
_SERVER_AGE_MAX_S = 3600.0  # of what a server wished; a clock may be wrong


class Rules(NamedTuple):
    """What the site says of its tier: where it is, and how long things take or last at most."""

    path: str
    lease_s: float
    wait_s: float
    ttl_s: float
    error_ttl_s: float


class Keeper:
    """Answers the questions of one node about one reference, by its `ref_id`."""

    def __init__(self, rules: Rules, ref_id: str, channel: Channel) -> None:
        self._rules = rules
        self._places = Places(rules.path)
        self._id = ref_id
        self._ref = f"{self._places.refs}/{ref_id}.json"
        self._failure = f"{self._places.failures}/{ref_id}.json"
        self._channel = channel
        self._lease = Lease(f"{self._places.leases}/{ref_id}", rules.lease_s)
        self._heard = time.monotonic()

    def run(self) -> None:
        """Answer until nobody asks any more."""
        while True:
            asked = self._channel.hear(1.0)
            if asked is None:
                # Its node is stopped, or hangs: others are to go on.
                if time.monotonic() - self._heard > self._rules.lease_s:
                    self._lease.release()
                continue
            self._heard = time.monotonic()
            question, file = asked
            name = question.pop("do")
            if name == "live":
                continue
            try:
                answer = getattr(self, f"do_{name}")(file=file, **question)
                self._channel.answer(answer)
            except Trouble as trouble:
                self._channel.fail(str(trouble))
            except OSError as error:
                at = error.filename or self._rules.path
                self._channel.fail(f"{at}: {error.strerror}")
            except (RuntimeError, ValueError) as error:  # of the lease's
                self._channel.fail(str(error))
            finally:
                if file is not None:
                    os.close(file)

    def do_look(self, *, file: None) -> dict[str, Any]:
        """Look without waiting for anybody."""
        places.prepare(self._places)
        record = self._load()
        fresh = record is not None and record.fresh(self._rules.ttl_s)
        return {"is": "there" if fresh else "missing", "record": record and record._asdict()}

    def do_find(self, *, file: None) -> dict[str, Any]:
        """Say where the image is to come from.

        `there`: from here. `ours`: we are to fetch it, and a record is of what may be out of
        date. `failed`: nobody is to ask for it. `busy`: another node does not get it done.
        """
        places.prepare(self._places)
        began, delay = time.monotonic(), _LOOK_FIRST_S
        while True:
            record = self._load()
            if record and record.fresh(self._rules.ttl_s):
                self._lease.release()
                with contextlib.suppress(OSError):  # mounted read-only: it is older, then
                    os.utime(record.path(self._places))
                return {"is": "there", "record": record._asdict()}
            if error := self._remembered():
                return {"is": "failed", "error": error.to_dict()}
            if self._lease.held:
                return {"is": "ours", "record": record and record._asdict()}
            if self._lease.take():
                continue  # what was there may be out of date
            if time.monotonic() - began > self._rules.wait_s:
                return {"is": "busy", "record": None}
            self._channel.say(waiting_s=round(time.monotonic() - began, 1))
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 1.5, _LOOK_MOST_S)

    def do_copy(self, *, record: dict[str, Any], file: int) -> dict[str, Any]:
        """Copy an image into an empty file."""
        wanted = records.from_fields(record)
        with self._reading(wanted):
            image, seen = places.open_file(wanted.path(self._places))
            try:
                if seen.st_size != wanted.size_bytes:
                    raise Trouble(f"{wanted.path(self._places)} is cut short")
                self._copy(image, file)
            finally:
                os.close(image)
        return {}

    def do_damaged(self, *, record: dict[str, Any], file: None) -> dict[str, Any]:
        """Remove an image that is not what its record says."""
        atomic.remove(records.from_fields(record).path(self._places))
        return {}

    def do_stock(self, *, record: dict[str, Any], file: int) -> dict[str, Any]:
        """Put an image here for all, and the reference that stands for it; give the lease back."""
        new = records.from_fields(record)
        path = new.path(self._places)
        try:
            if not self._has(new):
                self._check_room(new.size_bytes)
                self._put(new, path, file)
            records.save(self._places, self._ref, new._asdict())
            atomic.remove(self._failure)
        finally:
            self._lease.release()
        return {}

    def do_fail(self, *, error: dict[str, Any], file: None) -> dict[str, Any]:
        """Write down why the image cannot be had; give the lease back."""
        try:
            records.save(
                self._places, self._failure, {"time": time.time(), "error": error}, durable=False
            )
        finally:
            self._lease.release()
        return {}

    def do_release(self, *, file: None) -> dict[str, Any]:
        """Give the lease back."""
        self._lease.release()
        return {}

    def _load(self) -> Record | None:
        record = records.load(self._ref)
        return record if record and self._has(record) else None

    def _has(self, record: Record) -> bool:
        try:
            seen = os.lstat(record.path(self._places))
        except FileNotFoundError:
            return False
        return seen.st_size == record.size_bytes

    def _remembered(self) -> HpcimgError | None:
        """Return the failure of another node's that counts for all, as long as it does."""
        fields = records.read(self._failure)
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
                    raise Trouble(f"the image of {new.uri} is not what was verified")
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
        """Copy by read and write, which a process that is killed begins no more; return the sha256.

        copy_file_range(2) would go on in the kernel, into a file that is another's by then.
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
        """Keep the image from being evicted meanwhile, where that can be written down."""
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
