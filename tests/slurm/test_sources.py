"""Images from all sources at one site, in jobs of ordinary users."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.parts import layouts, ociimages
from tests.parts.objectstore import PRIVATE, PUBLIC, SITE, ObjectStore
from tests.parts.ociimages import make_layer, push_image, push_index
from tests.parts.publish import in_hub, in_library, in_static_registry, sha256
from tests.parts.registry import Registry
from tests.parts.registryclient import auth_file
from tests.parts.site import Site
from tests.parts.slurmclient import USERS
from tests.parts.swiftservers import KEY, USER, SwiftServers
from tests.parts.users import Homes
from tests.slurm.checks import completed, failed, settled
from tests.slurm.world import World, started

MISSING = Site.missing() or Homes.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)
needs_store = pytest.mark.skipif(ObjectStore.missing() != "", reason=ObjectStore.missing())
needs_swift = pytest.mark.skipif(SwiftServers.missing() != "", reason=SwiftServers.missing())
needs_skopeo = pytest.mark.skipif(layouts.missing() != "", reason=layouts.missing())

# Who has logins and keys, and who has none.
ALICE, BOB = USERS[:2]


@pytest.fixture(scope="module")
def running_world() -> Iterator[World]:
    """Everything, for all tests; each has images of its own."""
    with started() as world:
        yield world


@pytest.fixture
def world(running_world: World) -> Iterator[World]:
    """Everything, configured; no traces of jobs afterwards."""
    running_world.configure()
    yield running_world
    settled(running_world.site)


@pytest.fixture
def site(world: World) -> Site:
    return world.site


def submit(site: Site, images: Mapping[str, str], *, user: str = ALICE) -> int:
    """Submit a job that prints the name and the "hello" of each image; return its id."""
    comment = " ".join(f"container:{name}={uri}" for name, uri in images.items())
    lines = [f'echo "{name}: $({site.read_image} "$HPCIMG_IMAGE_{name}" hello)"' for name in images]
    return site.cluster.sbatch("\n".join(["set -e", *lines]), f"--comment={comment}", user=user)


def read_in_a_job(site: Site, images: Mapping[str, str], *, user: str = ALICE) -> dict[str, str]:
    """Return the "hello" of each image, read by one job that requests them all."""
    return read(site, submit(site, images, user=user))


def read(site: Site, job: int) -> dict[str, str]:
    """Return what a job has read."""
    [output] = completed(site, job)
    return dict(line.split(": ", 1) for line in output.splitlines())


def push(
    registry: Registry, repository: str, tag: str, says: str, **more: str
) -> ociimages.Descriptor:
    """Push an image in layers, the upper ones of which change and hide what is below."""
    lower = {"hello": b"from below\n", "etc/gone": b"", "unique": says.encode()}
    upper = {"hello": f"{says}\n".encode(), "etc/.wh.gone": b""}
    layers = [make_layer(files) for files in (lower, {"bin/tool": says.encode()}, upper)]
    return push_image(registry, repository, tag, layers, **more)


# Registries


def test_docker(site: Site) -> None:
    host = site.registry.host
    digest = push(site.registry, "lab/layers", "1", "by tag and digest").digest
    push(site.registry, "lab/layers", "latest", "the latest")
    built = [
        push(site.registry, "lab/index", name, f"for {name}", architecture=architecture)
        for name, architecture in (("another", "s390x"), ("this", ""))
    ]
    push_index(site.registry, "lab/index", "all", built)
    images = {
        "TAG": f"docker://{host}/lab/layers:1",
        "DIGEST": f"docker://{host}/lab/layers@{digest}",
        "LATEST": f"docker://{host}/lab/layers",
        "INDEX": f"docker://{host}/lab/index:all",
        "ENROOT": f"docker://{host}#lab/layers:1",
        "ORAS": f"oras://{host}/lab/layers:1",
    }
    assert read_in_a_job(site, images) == {
        "TAG": "by tag and digest",
        "DIGEST": "by tag and digest",
        "LATEST": "the latest",
        "INDEX": "for this",
        "ENROOT": "by tag and digest",
        "ORAS": "by tag and digest",
    }


def test_a_file_that_a_layer_hides(site: Site) -> None:
    push(site.registry, "lab/whiteout", "1", "whiteout")
    script = f'{site.read_image} "$HPCIMG_IMAGE" bin/tool && ! {site.read_image} "$HPCIMG_IMAGE" '
    comment = f"--comment=container:docker://{site.registry.host}/lab/whiteout:1"
    [output] = completed(site, site.cluster.sbatch(f"{script} etc/gone", comment))
    assert "no file etc/gone" in output


def test_a_sif_in_a_registry(site: Site) -> None:
    site.registry.push_sif(site.image("pushed"), "lab/pushed", "1")
    images = {name: f"{name}://{site.registry.host}/lab/pushed:1" for name in ("oras", "docker")}
    assert read_in_a_job(site, images) == {"oras": "pushed", "docker": "pushed"}


def test_registries_behind_a_login(world: World) -> None:
    site, host = world.site, world.private.host
    push(world.private, "lab/layers", "1", "the user's login")
    world.private.push_sif(site.image("the-users"), "lab/sif", "1")
    push(world.subscribed, "lab/layers", "1", "the site's login")
    site.homes.keep(ALICE, ".docker/config.json", auth_file(host))
    own = {"LAYERS": f"docker://{host}/lab/layers:1", "SIF": f"oras://{host}/lab/sif:1"}
    shared = {"SITE": f"docker://{world.subscribed.host}/lab/layers:1"}
    alices = submit(site, {**own, **shared})
    bobs, refused = submit(site, shared, user=BOB), submit(site, own, user=BOB)
    assert read(site, alices) == {
        "LAYERS": "the user's login",
        "SIF": "the-users",
        "SITE": "the site's login",
    }
    assert read(site, bobs) == {"SITE": "the site's login"}
    assert f"{host}/lab/layers:1 may not be read" in failed(site, refused)


def test_a_mirror_and_the_registry_itself_when_it_is_down(world: World) -> None:
    for name in ("cached", "direct"):
        push(world.origin, f"lab/{name}", "1", name)
    image = f"docker://{world.origin.host}/lab"
    assert read_in_a_job(world.site, {"X": f"{image}/cached:1"}) == {"X": "cached"}
    assert any("/lab/cached/manifests/" in line.path for line in world.mirror.requests())
    world.mirror.stop()
    try:
        assert read_in_a_job(world.site, {"X": f"{image}/direct:1"}) == {"X": "direct"}
    finally:
        world.mirror.start()


def test_library_hub_and_static_registry(site: Site) -> None:
    web, host = site.web, f"127.0.0.1:{site.web.port}"
    data = {name: site.image(name).read_bytes() for name in ("book", "page", "hub", "pinned")}
    pinned = f"lab/tools/pinned:{sha256(data['pinned']).replace(':', '.')}"
    in_library(web, "lab/tools/book:1", data["book"])
    in_library(web, pinned, data["pinned"])
    in_hub(web, "lab/hub:1", data["hub"], "1")
    in_static_registry(web, "/pages/lab/page/manifests/1/", data["page"])
    images = {
        "LIBRARY": "library://lab/tools/book:1",
        "THERE": f"library://{host}/lab/tools/book:1",
        "PINNED": f"library://{pinned}",
        "HUB": "shub://lab/hub:1",
        "HUB_THERE": f"shub://{host}/lab/hub:1",
        "PAGE": "pages://lab/page:1",
    }
    assert read_in_a_job(site, images) == {
        "LIBRARY": "book",
        "THERE": "book",
        "PINNED": "pinned",
        "HUB": "hub",
        "HUB_THERE": "hub",
        "PAGE": "page",
    }


# Object stores and web servers


@needs_store
def test_s3(world: World) -> None:
    site, store = world.site, world.store
    assert store
    for bucket, name in ((PUBLIC, "anybody"), (PRIVATE, "site"), (PRIVATE, "own")):
        store.put(bucket, f"{name}.sif", site.image(f"s3-{name}").read_bytes())
    images = {"PUBLIC": f"s3://{PUBLIC}/anybody.sif", "OWN": f"s3://{PRIVATE}/own.sif"}
    site.homes.keep(ALICE, ".aws/credentials", SITE.file)
    alices, bobs = submit(site, images), submit(site, images, user=BOB)
    assert read(site, alices) == {"PUBLIC": "s3-anybody", "OWN": "s3-own"}
    assert "own.sif may not be read" in failed(site, bobs)
    world.configure(s3=SITE)
    images = {"SITE": f"s3://{PRIVATE}/site.sif"}
    assert read_in_a_job(site, images, user=BOB) == {"SITE": "s3-site"}


@needs_swift
def test_swift(world: World) -> None:
    site, swift = world.site, world.swift
    assert swift
    swift.make_container("public", read=".r:*")
    swift.make_container("private")
    for container, name in (("public", "anybody"), ("private", "site"), ("private", "own")):
        swift.put(container, f"{name}.sif", site.image(f"swift-{name}").read_bytes())
    images = {"PUBLIC": "swift://public/anybody.sif", "OWN": "swift://private/own.sif"}
    login = f"ST_AUTH={swift.auth_url}\nST_USER={USER}\nST_KEY={KEY}\n"
    site.homes.keep(ALICE, ".config/hpcimg/swift.rc", login)
    alices, bobs = submit(site, images), submit(site, images, user=BOB)
    assert read(site, alices) == {"PUBLIC": "swift-anybody", "OWN": "swift-own"}
    assert "own.sif may not be read" in failed(site, bobs)
    world.configure(swift=login)
    images = {"SITE": "swift://private/site.sif"}
    assert read_in_a_job(site, images, user=BOB) == {"SITE": "swift-site"}


def test_web_servers(world: World) -> None:
    site = world.site
    images = {
        "HTTP": site.put("plain"),
        "HTTPS": world.secure.put("/x.sif", site.image("secure").read_bytes()),
    }
    assert read_in_a_job(site, images) == {"HTTP": "plain", "HTTPS": "secure"}


# File systems


@pytest.fixture
def shared(site: Site) -> Iterator[Path]:
    """A directory in place of a parallel file system."""
    directory = site.directory / "shared"
    directory.mkdir()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@needs_skopeo
def test_layouts_and_archives(site: Site, shared: Path) -> None:
    push(site.registry, "lab/saved", "1", "from a file")
    layouts.save(site.registry, "lab/saved:1", shared)
    (shared / "packed.tar.gz").write_bytes(gzip.compress((shared / "docker-archive").read_bytes()))
    (shared / "packed.tar.gz").chmod(0o644)
    images = {
        "OCI": f"oci:{shared}/oci:lab/saved:1",
        "OCI_ARCHIVE": f"oci-archive:{shared}/oci-archive",
        "DOCKER_ARCHIVE": f"docker-archive:{shared}/docker-archive",
        "PACKED": f"docker-archive:{shared}/packed.tar.gz",
    }
    assert read_in_a_job(site, images) == dict.fromkeys(images, "from a file")


def test_paths(site: Site, shared: Path) -> None:
    for name in ("all", "own"):
        shutil.copy(site.image(f"for-{name}"), shared / f"{name}.sif")
    (shared / "own.sif").chmod(0o600)
    shutil.chown(shared / "own.sif", ALICE)
    images = {"ALL": f"{shared}/all.sif", "URI": f"file://{shared}/all.sif"}
    images["OWN"] = f"{shared}/own.sif"
    alices, bobs = submit(site, images), submit(site, images, user=BOB)
    assert read(site, alices) == {"ALL": "for-all", "URI": "for-all", "OWN": "for-own"}
    assert f"{shared}/own.sif may not be read" in failed(site, bobs)


# Across


def test_aliases(site: Site) -> None:
    push(site.registry, "aliased/tool", "1", "by name")
    push(site.registry, "aliased/other", "2", "by prefix")
    images = {"NAME": "tool", "PREFIX": "bio/other:2"}
    assert read_in_a_job(site, images) == {"NAME": "by name", "PREFIX": "by prefix"}


def test_two_nodes_and_two_jobs_at_once(site: Site) -> None:
    """Each node fetches each layer once and converts once, whichever job asks."""
    push(site.registry, "lab/wide", "1", "wide")
    comment = f"--comment=container:docker://{site.registry.host}/lab/wide:1"
    step = f"srun sh -c 'echo $SLURMD_NODENAME $({site.read_image} \"$HPCIMG_IMAGE\" hello)'"
    jobs = [site.cluster.sbatch(step, "--nodes=2", comment, user=user) for user in (ALICE, BOB)]
    for output in completed(site, *jobs):
        assert sorted(output.splitlines()) == ["n1 wide", "n2 wide"]
    for name in site.cluster.nodes:
        events = (site.node(name).state / "events.jsonl").read_text().splitlines()
        ours = set(map(str, jobs))
        found = [event for event in map(json.loads, events) if event.get("job") in ours]
        assert len({event["key"] for event in found}) == 1
        assert [event["event"] for event in found].count("fetched") == 1
        assert {event["job"] for event in found} == ours
    # The config and the layers.
    gets = [line for line in site.registry.blob_gets() if "/lab/wide/" in line.path]
    assert len(gets) == len(site.cluster.nodes) * (1 + 3)
