"""The checks of an image on its way into the cache."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from hpcimg.cache import directories, evict, identity, inflight, lease, policy, store
from hpcimg.cache.arrival import Arrival
from hpcimg.cache.ensure import ensure
from hpcimg.cache.inflight import Inflight
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.errors import Damaged, NoRoom, TooLarge, Unreachable
from hpcimg.fetch.contract import (
    Blob,
    Converting,
    Fetched,
    Files,
    Listener,
    Offer,
    Outcome,
    Request,
    Whole,
)
from hpcimg.locks import held
from hpcimg.reference import parse
from tests.parts.served import Content, Server, sha256, stage, tiny_image

URI = "https://images.example.org/x.sif"
FILE = tiny_image(b"x" * 1000)
LAYERS = (b"a" * 1000, b"b" * 500)
IN_LAYERS = Content(layers=LAYERS)


def make_cache(directory: Path, *, max_size: int = 1 << 20, max_image_size: int = 0) -> Cache:
    layout = Layout(str(directory / "cache"), str(directory / "state"))
    directories.prepare(layout)
    limits = policy.Limits(max_size, max_size, max_size, 0, 0.0)
    return Cache(layout, limits, tag_ttl_s=0.0, max_image_size=max_image_size)


@contextmanager
def arriving(cache: Cache, server: Server | None = None) -> Iterator[Arrival]:
    layout, deadline = cache.layout, time.monotonic() + 5
    request = Request(parse(URI), deadline, "1")

    def lock(name: str) -> AbstractContextManager[bool]:
        return held(layout.lock(name), deadline=deadline, waiting=lambda _: None)

    with (
        Inflight(layout, "x", request) as under_way,
        Arrival(cache, under_way, request, server or Server(IN_LAYERS), lock=lock) as arrival,
    ):
        yield arrival


def bring(arrival: Arrival, files: Files) -> None:
    """Let all LAYERS arrive in their files."""
    for number, layer in enumerate(LAYERS):
        file = files[number]
        assert file is not None
        os.write(file, layer)
        arrival.arrived(number, Fetched(len(layer), sha256(layer)))


def test_a_file_that_comes_in_one_go_keeps_to_the_sites_limit(tmp_path: Path) -> None:
    """Neither a size nor progress was reported."""
    cache = make_cache(tmp_path, max_image_size=1000)
    with arriving(cache) as arrival:
        assert arrival.offered(Offer("v1")) == ()
        os.write(arrival.descriptor, FILE)
        with pytest.raises(TooLarge, match="this site accepts images up to 1000 B"):
            arrival.finish(Fetched(len(FILE), sha256(FILE)))
    assert list(store.entries(cache.layout)) == []


@pytest.mark.parametrize(("max_size", "max_image_size"), [(6000, 3000), (3400, 0)])
def test_a_conversion_keeps_to_the_limits_however_large_it_gets(
    tmp_path: Path, max_size: int, max_image_size: int
) -> None:
    cache = make_cache(tmp_path, max_size=max_size, max_image_size=max_image_size)
    server = Server(IN_LAYERS)
    made = tiny_image(b"x" * 3500)

    def make(descriptor: int, *_: object) -> Fetched:
        os.write(descriptor, made)
        return Fetched(len(made), sha256(made))

    server.make = make  # type: ignore[method-assign]
    with pytest.raises(TooLarge):
        stage(cache, URI, server)
    assert not os.listdir(cache.layout.images)


def test_a_conversion_takes_no_room_before_it_writes(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    seen = []

    def at(point: str) -> None:
        if point == "converting":
            [work] = inflight.under_way(cache.layout)
            seen.append((work["written"], work["coming"]))

    stage(cache, URI, Server(IN_LAYERS, at=at))
    assert seen == [(0, 0)]


class Announced:
    """A fetch of a file that is announced to have many bytes, in a cache of 100 MiB."""

    MIB = 1 << 20

    def __init__(self, directory: Path) -> None:
        self.cache = make_cache(directory, max_size=100 * self.MIB)
        self.layout = self.cache.layout

    def put(self, number: int, size_mib: int) -> None:
        """Put an unused image of this size into the cache."""
        name = f"{number}" * 64
        meta = store.Entry(
            f"sha256-{name}", "sif", name, size_mib * self.MIB, "", (), float(number)
        )
        with store.unfinished(self.layout, "x") as (path, file):
            os.truncate(file, meta.size_bytes)
            store.publish(self.layout, meta, path, file)
        os.utime(self.layout.meta(meta.key), (number, number))

    def images(self) -> list[str]:
        return sorted(name[7] for name in os.listdir(self.layout.images))


def test_an_announced_length_evicts_nothing_until_bytes_come(tmp_path: Path) -> None:
    made = Announced(tmp_path)
    for number in range(10):
        made.put(number, 10)
    with arriving(made.cache) as arrival:
        assert arrival.offered(Offer("v1", 95 * made.MIB)) == ()
        os.write(arrival.descriptor, b"four")
        arrival.progress("fetching", 4, 95 * made.MIB)
        assert len(made.images()) == 10
        [work] = inflight.under_way(made.layout)
        assert (work["written"], work["coming"]) == (4, 0)
        # Then as much as has come, and some in front of it.
        os.truncate(arrival.descriptor, 2 * made.MIB)
        arrival.progress("fetching", 2 * made.MIB, 95 * made.MIB)
        assert made.images() == ["7", "8", "9"]
        os.truncate(arrival.descriptor, 60 * made.MIB)
        arrival.progress("fetching", 60 * made.MIB, 95 * made.MIB)
        assert made.images() == []
        [work] = inflight.under_way(made.layout)
        assert work["written"] + work["coming"] == 95 * made.MIB


def test_what_never_fits_is_refused_before_anything_goes_for_it(tmp_path: Path) -> None:
    made = Announced(tmp_path)
    for number in range(3):
        made.put(number, 10)
    lease.open_to_hits(made.layout, f"sha256-{'1' * 64}")
    assert lease.take(made.layout, f"sha256-{'1' * 64}", "7")
    with arriving(made.cache) as arrival:
        with pytest.raises(TooLarge):
            arrival.offered(Offer("v1", 101 * made.MIB))
        with pytest.raises(NoRoom, match=r"10\.0 MiB in use by 1 job"):
            arrival.offered(Offer("v1", 95 * made.MIB))
    assert made.images() == ["0", "1", "2"]


def test_what_is_set_apart_behind_the_end_of_a_file_is_found_out(tmp_path: Path) -> None:
    made = Announced(tmp_path)
    with arriving(made.cache) as arrival:
        arrival.offered(Offer("v1", 5 * made.MIB))
        subprocess.run(
            ["fallocate", "--keep-size", "--length", "80M", f"/proc/self/fd/{arrival.descriptor}"],
            pass_fds=[arrival.descriptor],
            check=True,
        )
        with pytest.raises(Damaged, match="more room on the disk than its size"):
            arrival.progress("fetching", 0, 5 * made.MIB)


def test_what_was_set_apart_is_given_back_when_the_image_is_published(tmp_path: Path) -> None:
    made = Announced(tmp_path)
    with arriving(made.cache) as arrival:
        arrival.offered(Offer("v1", len(FILE)))
        os.write(arrival.descriptor, FILE)
        subprocess.run(
            ["fallocate", "--keep-size", "--length", "8M", f"/proc/self/fd/{arrival.descriptor}"],
            pass_fds=[arrival.descriptor],
            check=True,
        )
        entry = arrival.finish(Fetched(len(FILE), sha256(FILE)))
    seen = os.stat(store.path_of(made.layout, entry))
    assert seen.st_size == len(FILE)
    assert seen.st_blocks * 512 < 1 << 20


def test_a_cache_of_tiny_images_keeps_to_their_number(tmp_path: Path) -> None:
    made = Announced(tmp_path)
    cache = made.cache._replace(limits=made.cache.limits._replace(max_images=5))
    for number in range(5):
        made.put(number, 0)
    stage(cache, URI, Server(Content(FILE)))
    assert len(made.images()) == 5
    assert "0" not in made.images()


def test_a_conversion_begins_with_the_highest_layer(tmp_path: Path) -> None:
    cache, server = make_cache(tmp_path), Server(IN_LAYERS)
    offer = IN_LAYERS.offer
    low, high = (Fetched(layer.size_bytes, layer.sha256) for layer in offer.layers)
    with arriving(cache, server) as arrival:
        files = arrival.offered(offer)
        assert files
        os.write(int(files[0] or 0), LAYERS[0])
        arrival.arrived(0, low)
        arrival.progress("fetching", 1000, 1500)
        assert server.conversions == 0
        os.write(int(files[1] or 0), LAYERS[1][:-1] + b"x")
        arrival.arrived(1, high._replace(sha256=sha256(b"x")))  # wrong, and not handed over
        arrival.progress("fetching", 1500, 1500)
        assert server.conversions == 0
        with pytest.raises(Damaged, match="layer 2 of 2"):
            arrival.convert()


def test_a_conversion_waits_for_the_others_and_ends_with_the_offer(tmp_path: Path) -> None:
    cache, server = make_cache(tmp_path), Server(IN_LAYERS)
    offer = IN_LAYERS.offer
    low, high = (Fetched(layer.size_bytes, layer.sha256) for layer in offer.layers)
    with arriving(cache, server) as arrival:
        for again in (False, True):
            files = arrival.offered(offer)
            assert files
            assert (files[1] is None) == again  # it is in the cache by now
            if not again:
                os.write(int(files[1] or 0), LAYERS[1])
                arrival.arrived(1, high)
            arrival.progress("fetching", 0, None)
            conversion = server.conversion
            assert list(conversion.layers) == [1]
            # Who fetches has this one open for writing, and could change what is converted.
            assert not os.path.sameopenfile(conversion.descriptor, arrival.descriptor)
            os.write(conversion.descriptor, b"x" * 700)
            arrival._inflight._next = 0.0
            arrival.progress("fetching", 0, None)
            assert [work["written"] for work in inflight.under_way(cache.layout)] == [700]
            assert not conversion.ended
            made = len(os.listdir(cache.layout.tmp))
        assert server.conversions == 2
        os.write(int(files[0] or 0), LAYERS[0])
        arrival.arrived(0, low)
        assert arrival.convert().sha256 == sha256(IN_LAYERS.image("squashfs"))
    assert made == 3  # the fetch's, the lower layer's, and that of this conversion alone
    assert os.listdir(cache.layout.tmp) == []


def test_what_a_conversion_unpacks_counts_and_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path, max_size=10_000)
    lost = 0  # by the disk, to what is unpacked
    monkeypatch.setattr(evict, "free_on_disk", lambda _: (1 << 40) - lost)
    old = Content(tiny_image(b"o" * 4000))
    stage(cache, "https://images.example.org/old.sif", Server(old))
    layers = tuple(Blob(sha256(layer), len(layer)) for layer in LAYERS)
    server = Server(IN_LAYERS)
    with arriving(cache, server) as arrival:
        files = arrival.offered(Offer("v1", config="{}", layers=layers))
        assert files
        bring(arrival, files)

        def make(_descriptor: int, _layers: object, progress: Converting) -> Fetched:
            # What it says and the disk does not show is not believed.
            progress(1, 2, 1 << 50)
            assert [work["written"] for work in inflight.under_way(cache.layout)] == [0]
            # Layers, image and files: 1500 + 1500 + 2000 bytes beside the 4096 of another image.
            beside(progress, 2000)
            assert store.load_entry(cache.layout, old.key(""))
            beside(progress, 6000)
            assert not store.load_entry(cache.layout, old.key(""))
            assert [work["written"] for work in inflight.under_way(cache.layout)] == [6000]
            beside(progress, 10_500)
            raise AssertionError("there is no room for that")

        server.make = make  # type: ignore[method-assign]

        def beside(progress: Converting, size_bytes: int) -> None:
            nonlocal lost
            lost = size_bytes
            arrival._inflight._next = 0.0
            progress(1, 2, size_bytes)

        with pytest.raises(NoRoom, match="no room on this node"):
            arrival.convert()


MADE_KEY = f"layers-sha256-{'a' * 64}-squashfs"
MADE = Whole("v1", MADE_KEY, sha256(FILE), len(FILE), "sha256:m", "site")


def test_another_nodes_image_is_kept_under_its_key(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    with arriving(cache) as arrival:
        assert arrival.offered(MADE) == ()
        os.write(arrival.descriptor, FILE)
        arrival.finish(Fetched(len(FILE), sha256(FILE)))
    [entry] = store.entries(cache.layout)
    assert (entry.key, entry.source, entry.sha256) == (MADE.key, MADE.source, MADE.sha256)
    with arriving(cache) as arrival:
        assert arrival.offered(MADE) is None


def test_another_nodes_image_is_not_what_that_node_recorded(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    with arriving(cache) as arrival:
        arrival.offered(MADE)
        with pytest.raises(Damaged):
            arrival.finish(Fetched(len(FILE), sha256(b"other")))
    assert list(store.entries(cache.layout)) == []


@pytest.mark.parametrize(
    "key", ["../../etc/x", f"sha256-{'b' * 64}", MADE.key.replace("squashfs", "sif"), ""]
)
def test_another_nodes_image_under_a_name_that_it_cannot_have(tmp_path: Path, key: str) -> None:
    with arriving(make_cache(tmp_path)) as arrival, pytest.raises(Damaged, match="wrong name"):
        arrival.offered(MADE._replace(key=key))


def test_another_offer_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """What a server announced for what it had before says nothing of what it has now."""
    cache = make_cache(tmp_path)
    with arriving(cache) as arrival:
        assert arrival.offered(Offer("v1", 5, "0" * 64)) == ()
        assert arrival.offered(Offer("v2", len(FILE))) == ()
        os.write(arrival.descriptor, FILE)
        entry = arrival.finish(Fetched(len(FILE), sha256(FILE)))
    assert entry.key == f"sha256-{sha256(FILE)}"


def test_the_same_layers_offered_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    layers = tuple(Blob(sha256(layer), len(layer)) for layer in LAYERS)
    with arriving(cache) as arrival:
        for order in (layers, layers[::-1], layers):
            files = arrival.offered(Offer("v1", config="{}", layers=order))
            assert files
        bring(arrival, files)
        entry = arrival.convert()
    assert entry.key == identity.key_of(Offer("v1", config="{}", layers=layers), "squashfs")


def test_an_offer_whose_digest_is_a_path(tmp_path: Path) -> None:
    """Said by a process that a server took over: digests become names of files, made by root."""
    cache = make_cache(tmp_path)
    (tmp_path / "cache" / "locks" / "blob-sha256-x").mkdir()
    for offer in (
        Offer("v1", config="{}", layers=(Blob("x/../../../there", 1),)),
        Offer("v1", 5, "../../there"),
    ):
        with arriving(cache) as arrival, pytest.raises(Damaged, match="a malformed digest"):
            arrival.offered(offer)
    assert [path.name for path in tmp_path.rglob("*there*")] == []


def test_a_server_that_ends_its_offer_of_what_was_just_evicted(tmp_path: Path) -> None:
    """The image is gone, so it cannot be served stale; no process waits for itself."""
    cache = make_cache(tmp_path)
    content = Content(FILE, announced="digest")
    stage(cache, URI, Server(content))

    class Gone(Server):
        def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
            assert validator
            evict.evict(cache.layout, content.key("squashfs"))
            assert listener.offered(content.offer) == ()
            raise Unreachable("gone")

    began = time.monotonic()
    with pytest.raises(Unreachable, match="gone"):
        ensure(cache, Request(parse(URI), began + 30, "1"), Gone(content))
    assert time.monotonic() - began < 30
