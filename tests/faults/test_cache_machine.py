"""The promises of the cache, checked under random operations in random order.

The machine stages, releases, kills, loses power, sets the clock and removes files by hand, in a
cache of a few KiB on a tmpfs, and knows what has to be in it. HPCIMG_LONG=1 (`make test-long`)
makes it run for many times as long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hpcimg import errors, processes
from hpcimg.cache import directories, evict, hot, inflight, lease, policy, store
from hpcimg.cache.ensure import FORMATS, Staged
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.errors import HpcimgError, NoRoom, TooLarge
from hpcimg.locks import held
from tests.faults import forked
from tests.faults.forked import End
from tests.parts.served import CONVERTING, FETCHING, Content, Server, sha256, stage, tiny_image

LONG = bool(os.environ.get("HPCIMG_LONG"))
MAX_SIZE = 6000
TTL_S = 3600.0
GRACE_S = 60.0
OWNERS = [None, None, None, 1000, 2000]
JOBS = [str(job) for job in range(1, 4)]
LAYERS = [bytes([65 + n]) * size for n, size in enumerate((90, 300, 700, 900))]
CONTENTS = [
    *(
        Content(tiny_image(bytes([48 + n]) * size), announced=announced)
        for n, (size, announced) in enumerate(
            [(100, "digest"), (900, "digest"), (1500, "size"), (700, "nothing"), (2000, "nothing"),
             (300, "size"), (MAX_SIZE - 500, "digest"), (MAX_SIZE, "nothing"), (MAX_SIZE, "size")]
        )
    ),
    Content(layers=(LAYERS[0], LAYERS[1])),
    Content(layers=(LAYERS[0], LAYERS[2])),
    Content(layers=(LAYERS[0], LAYERS[1], LAYERS[0])),
    Content(layers=(LAYERS[3], LAYERS[2])),
    Content(layers=(LAYERS[3], LAYERS[0])),
    # With what is made of it, which is a little larger, it fills the cache and more.
    Content(layers=(b"e" * (MAX_SIZE // 2 - 20),)),
    Content(layers=(b"f" * MAX_SIZE,)),
]  # fmt: skip
PINNED_CONTENT = CONTENTS[9]
PINNED = f"docker://example.org/pinned@sha256:{sha256(PINNED_CONTENT.manifest.encode())}"
REFERENCES = [*(f"https://example.org/{n}.sif" for n in range(3)), PINNED]
# What every key that there can be stands for.
FILES = {
    **{
        content.key(image_format, owner): content.image(image_format)
        for content in CONTENTS for image_format in FORMATS for owner in set(OWNERS)
    },
    **{
        f"{prefix}blob-sha256-{sha256(layer)}": layer
        for prefix in ("", "u1000-", "u2000-") for content in CONTENTS for layer in content.layers
    },
}  # fmt: skip
ERRORS = [
    errors.Unreachable, errors.DeadlinePassed, errors.Interrupted, errors.Damaged, errors.NotFound,
    errors.Forbidden, errors.NotAnImage, errors.CacheUnusable, errors.Bug,
]  # fmt: skip
FAULTS = {"ENOSPC": NoRoom, "EDQUOT": NoRoom, "EIO": errors.CacheUnusable}


class Killed(BaseException):
    """Ends a fetch or a conversion, like nothing that hpcimg expects."""


class Clock:
    """The time of day, for Python's clock and for files that are marked with it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self._utime = os.utime

    def time(self) -> float:
        return self.now

    def utime(self, path: str) -> None:
        self._utime(path, (self.now, self.now))

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with (
            mock.patch("time.time", self.time),
            mock.patch("os.utime", self.utime),
            mock.patch("posix.utime", self.utime),
        ):
            yield


class Wanted(NamedTuple):
    """A reference as requested by a job: shared, or private to its user."""

    uri: str
    owner: int | None


class Known(NamedTuple):
    """What the cache may take a reference for.

    By the clock: when the server said so, and when it did not answer and was left alone.
    """

    content: Content
    resolved: float
    unanswered: float = 0.0

    def believed(self, now: float) -> bool:
        return 0 <= now - self.resolved < TTL_S or 0 <= now - self.unanswered < GRACE_S


WANTED = st.builds(Wanted, st.sampled_from(REFERENCES), st.sampled_from(OWNERS))


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        shm = "/dev/shm"
        self.directory = Path(
            tempfile.mkdtemp(prefix="hpcimg-test-", dir=shm if os.access(shm, os.W_OK) else None)
        )
        self.layout = Layout(f"{self.directory}/cache", f"{self.directory}/state")
        self.image_format = "squashfs"
        self.clock = Clock()
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(self.clock.shown())
        logging.disable()
        self.patches.callback(logging.disable, logging.NOTSET)
        kinds = (CONTENTS[0], CONTENTS[10], CONTENTS[-2], PINNED_CONTENT)
        self.served = dict(zip(REFERENCES, kinds, strict=True))
        self.known: dict[Wanted, Known] = {}
        # What jobs were told: the image's path and its bytes.
        self.ready: dict[str, dict[str, bytes]] = {}
        self.spoiled: dict[str, bytes] = {}  # by hand, until it is written anew
        directories.prepare(self.layout)

    def teardown(self) -> None:
        self.patches.close()
        shutil.rmtree(self.directory)

    @property
    def cache(self) -> Cache:
        limits = policy.Limits(MAX_SIZE, MAX_SIZE * 9 // 10, MAX_SIZE // 2, 0, 0.0)
        return Cache(self.layout, limits, TTL_S, image_format=self.image_format)

    # What happens

    @rule(wanted=WANTED, job=st.sampled_from(["", *JOBS]))
    def stage(self, wanted: Wanted, job: str) -> None:
        self._stage(wanted, job, Server(self.served[wanted.uri], image_format=self.image_format))

    @rule(
        wanted=WANTED,
        job=st.sampled_from(JOBS),
        error=st.sampled_from([*ERRORS, Killed]),
        point=st.sampled_from([*FETCHING, *CONVERTING]),
    )
    def stage_where_something_fails(
        self, wanted: Wanted, job: str, error: type[BaseException], point: str
    ) -> None:
        def at(here: str) -> None:
            if here == point:
                raise error("it fails")

        self._stage(wanted, job, self._server(wanted, at), may_fail=error)

    @rule(
        wanted=WANTED,
        job=st.sampled_from(JOBS),
        point=st.sampled_from([*FETCHING, *CONVERTING]),
        error=st.sampled_from([None, None, errors.Unreachable]),
    )
    def stage_while_others_empty_the_cache(
        self, wanted: Wanted, job: str, point: str, error: type[Exception] | None
    ) -> None:
        def at(here: str) -> None:
            if here == point:
                self.sweep_as_an_epilog_does()
                for entry in list(store.entries(self.layout)):
                    evict.evict(self.layout, entry.key)
            if here == "half" and error:
                raise error("it fails")

        self._stage(wanted, job, self._server(wanted, at), may_fail=error, alone=False)

    @rule(wanted=WANTED, job=st.sampled_from(JOBS), kind=st.sampled_from(["cut", "other", "more"]))
    def stage_from_a_server_that_lies(self, wanted: Wanted, job: str, kind: str) -> None:
        content = self.served[wanted.uri]
        whole = content.layers[-1] if content.layers else content.data
        sent = {"cut": whole[:-7], "other": b"<html>", "more": whole + b"more"}[kind]
        if content.layers or content.announced == "digest" or kind != "more":
            server = Server(content, sent=sent, image_format=self.image_format)
            self._stage(wanted, job, server, may_fail=HpcimgError)

    @rule(
        wanted=WANTED,
        job=st.sampled_from(JOBS),
        fault=st.sampled_from(["kill", *FAULTS]),
        number=st.integers(1, 60),
    )
    def stage_with_a_fault(self, wanted: Wanted, job: str, fault: str, number: int) -> None:
        """By a process that is killed, or met by an error, at one of its system calls."""
        server = Server(self.served[wanted.uri], image_format=self.image_format)

        def part() -> None:
            self._hook(wanted, job, server)

        self.clock.now += 0.5  # what is resolved at this moment, it has resolved
        end = forked.run(part, self.layout, fault=fault, number=number)
        note(f"{end}")
        self._check_end(end, fault)
        # It may have come so far as to resolve the reference, or not.
        ref = store.load_ref(self.layout, store.ref_id(*wanted))
        if ref and ref.resolved == self.clock.now:
            self.known[wanted] = Known(self.served[wanted.uri], self.clock.now)
        self.ready.pop(job, None)
        self.release(job)

    @rule(uri=st.sampled_from(REFERENCES[:-1]), content=st.sampled_from(CONTENTS))
    def another_image_is_pushed(self, uri: str, content: Content) -> None:
        self.served[uri] = content

    @rule(job=st.sampled_from(JOBS))
    def release(self, job: str) -> None:
        """Do what Epilog does."""
        self.ready.pop(job, None)
        lease.drop(self.layout, job)
        self.sweep_as_an_epilog_does()

    def sweep_as_an_epilog_does(self) -> None:
        directories.prepare(self.layout)
        evict.trim(self.layout, self.cache.limits, time_s=10)
        used = sum(entry.size_bytes for entry in store.entries(self.layout))
        assert used <= self.cache.limits.high or self._leased_bytes() > self.cache.limits.low

    @rule()
    def gc(self) -> None:
        directories.prepare(self.layout)
        store.sweep(self.layout)
        inflight.sweep(self.layout)
        store.sweep_orphans(self.layout)
        evict.trim(self.layout, self.cache.limits, time_s=10)
        assert not self._unfinished()

    # Nothing that is drawn depends on what is there: a killed process may have come farther in
    # another run of the same history.
    @rule(number=st.integers(0, 99))
    def evict_one(self, number: int) -> None:
        keys = sorted(entry.key for entry in store.entries(self.layout))
        if keys:
            key = keys[number % len(keys)]
            used = bool(lease.holders(self.layout, key))
            assert evict.evict(self.layout, key) != used

    @rule()
    def reboot(self) -> None:
        """The tmpfs is lost, and with it the jobs."""
        shutil.rmtree(self.layout.state)
        self.ready.clear()
        directories.prepare(self.layout)

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0, 1000.0, TTL_S + 1, 30 * TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(seconds=st.sampled_from([-(10**8), -TTL_S * 2, -10, 10, TTL_S * 2, 10**8]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(image_format=st.sampled_from(FORMATS))
    def the_site_wants_another_format(self, image_format: str) -> None:
        self.image_format = image_format

    @rule(number=st.integers(0, 99), cut=st.booleans())
    def somebody_removes_or_cuts_a_file(self, number: int, cut: bool) -> None:
        paths = [*self._images(), *self._listed(self.layout.metas), *self._listed(self.layout.refs)]
        if not paths:
            return
        path = paths[number % len(paths)]
        note(f"{path}")
        if cut:
            os.chmod(path, 0o600)
            os.truncate(path, os.stat(path).st_size // 2)
            self.spoiled[path] = Path(path).read_bytes()
        else:
            os.unlink(path)
        for told in self.ready.values():
            told.pop(path, None)
            key = Path(path).name.removesuffix(".json")
            if path.startswith(self.layout.metas):  # its image counts as none, and may be swept
                for image in [image for image in told if f"/{key}." in image]:
                    del told[image]

    @rule()
    def layers_rot(self) -> None:
        for path in self._listed(self.layout.blobs):
            os.chmod(path, 0o600)
            rotten = b"?" * os.stat(path).st_size
            Path(path).write_bytes(rotten)
            self.spoiled[path] = rotten

    @rule(wanted=WANTED, job=st.sampled_from(JOBS))
    def a_warm_hit(self, wanted: Wanted, job: str) -> None:
        """Check that the fast path finds what the slow path recorded, and nothing outdated."""
        directories.prepare(self.layout)
        uid = wanted.owner or 3000
        hit = hot.lookup(self.layout, wanted.uri, job=job, uid=uid, fingerprint=self.image_format)
        if hit:
            # A user's own goes before what all share.
            owner = int(hit.key[1:].partition("-")[0]) if hit.key.startswith("u") else None
            assert owner in (None, wanted.owner)
            self._check_told(Wanted(wanted.uri, owner), hit.path, fetched=False)
            self.ready.setdefault(job, {})[hit.path] = Path(hit.path).read_bytes()

    # How it is done

    def _server(self, wanted: Wanted, at: Callable[[str], None]) -> Server:
        return Server(self.served[wanted.uri], at=at, image_format=self.image_format)

    def _hook(self, wanted: Wanted, job: str, server: Server) -> Staged:
        return stage(self.cache, wanted.uri, server, job=job, owner=wanted.owner)

    def _stage(
        self,
        wanted: Wanted,
        job: str,
        server: Server,
        *,
        may_fail: type[BaseException] | None = None,
        alone: bool = True,
    ) -> None:
        content = self.served[wanted.uri]
        key = content.key(self.image_format, wanted.owner)
        there = store.load_entry(self.layout, key) is not None
        expected = (NoRoom, TooLarge, may_fail) if may_fail else (NoRoom, TooLarge)
        try:
            staged = self._hook(wanted, job, server)
        except expected as error:
            note(f"{error!r} {error}")
            assert server.transfers <= 1
            if isinstance(error, NoRoom) and not may_fail:
                self._check_room_was_short(content, str(error))
            self._check_nobody_waits_for(wanted, key)
            return
        note(f"{staged.how}")
        assert server.asked <= 2
        assert server.transfers <= 1, "fetched twice"
        assert server.conversions <= server.transfers
        assert staged.how == "stale" or (staged.how == "fetched") == bool(server.transfers)
        assert not server.lied, "a lie was believed"
        if there and alone and (content.offer.sha256 or content.layers):
            assert not server.transfers, "it was there"
        fetched = server.asked > 0 and staged.how != "stale"
        if fetched:
            self.known[wanted] = Known(content, self.clock.now)
        elif staged.how == "stale":
            self.known[wanted] = self.known[wanted]._replace(unanswered=self.clock.now)
        self._check_told(wanted, staged.path, fetched=fetched, stale=staged.how == "stale")
        assert staged.entry.owner == wanted.owner
        if job:
            self.ready.setdefault(job, {})[staged.path] = Path(staged.path).read_bytes()
            assert job in lease.holders(self.layout, staged.entry.key)
        self._check_nobody_waits_for(wanted, key)

    # What must hold

    def _check_told(self, wanted: Wanted, path: str, *, fetched: bool, stale: bool = False) -> None:
        known = self.known[wanted]
        formats = FORMATS if stale else (self.image_format,)
        assert Path(path).read_bytes() in [known.content.image(each) for each in formats]
        pinned = wanted.uri == PINNED
        assert fetched or stale or pinned or known.believed(self.clock.now), "out of date"
        seen = os.lstat(path)
        directory = (
            self.layout.images if wanted.owner is None else f"{self.layout.users}/{wanted.owner}"
        )
        assert os.path.dirname(path) == directory
        private = 0o440 if os.geteuid() == 0 else 0o400
        assert stat.S_IMODE(seen.st_mode) == (0o444 if wanted.owner is None else private)
        assert seen.st_uid == os.geteuid()

    def _check_room_was_short(self, content: Content, message: str) -> None:
        """What jobs use, with what it needs itself, is more than the cache holds."""
        needs = len(content.image(self.image_format)) + sum(map(len, content.layers))
        assert self._leased_bytes() + needs > MAX_SIZE, message

    def _check_nobody_waits_for(self, wanted: Wanted, key: str) -> None:
        """Check that no lock is still held."""
        for name in (store.ref_id(*wanted), key, "room"):
            with held(self.layout.lock(name), deadline=0.0, waiting=lambda _: None):
                pass

    def _check_end(self, end: End, fault: str) -> None:
        assert not end.unforeseen, f"{end.struck}: {end.unforeseen}"
        if not end.struck.startswith("unlink"):
            assert not end.left, end
        if end.error and end.struck:
            assert isinstance(end.error, (FAULTS[fault], NoRoom, TooLarge)), end

    @invariant()
    def images_are_what_their_keys_say(self) -> None:
        for path in self._images():
            data = Path(path).read_bytes()
            if self.spoiled.get(path) != data:
                assert data == FILES[Path(path).name.partition(".")[0]], path
                private = path.startswith(self.layout.users)
                assert private == Path(path).name.startswith("u")

    @invariant()
    def jobs_have_their_images(self) -> None:
        for job, told in self.ready.items():
            for path, data in told.items():
                assert Path(path).read_bytes() == data, (job, path)

    @invariant()
    def the_cache_keeps_to_its_size(self) -> None:
        assert sum(entry.size_bytes for entry in store.entries(self.layout)) <= MAX_SIZE

    @invariant()
    def nothing_unfinished_is_ours(self) -> None:
        assert not [name for name in self._unfinished() if name.startswith(processes.tag())]
        assert inflight.under_way(self.layout) == []

    @invariant()
    def records_can_be_read(self) -> None:
        for directory, fields in ((self.layout.metas, store.Entry), (self.layout.refs, store.Ref)):
            for path in self._listed(directory):
                text = Path(path).read_bytes()
                if self.spoiled.get(path) != text:
                    fields(**{n: v for n, v in json.loads(text).items() if n != "version"})

    def _images(self) -> list[str]:
        users = self._listed(self.layout.users)
        directories = [self.layout.images, self.layout.blobs, *users]
        return [path for directory in directories for path in self._listed(directory)]

    def _unfinished(self) -> list[str]:
        directories = (
            self.layout.tmp,
            self.layout.work,
            self.layout.state_tmp,
            self.layout.inflight,
        )
        return [
            os.path.basename(path) for directory in directories for path in self._listed(directory)
        ]

    def _leased_bytes(self) -> int:
        entries = store.entries(self.layout)
        return sum(e.size_bytes for e in entries if lease.holders(self.layout, e.key))

    @staticmethod
    def _listed(directory: str) -> list[str]:
        return sorted(f"{directory}/{name}" for name in os.listdir(directory))


TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=10_000 if LONG else 100,
    stateful_step_count=50 if LONG else 30,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
TestCache.pytestmark = [pytest.mark.timeout(14_400 if LONG else 300)]
