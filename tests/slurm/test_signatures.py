"""Jobs of a site that accepts only signed images, with a real Apptainer: [policy] verify = sif."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.parts import apptainer, docblocks, ociimages
from tests.parts.apptainer import Signer, add_part
from tests.parts.daemon import PATH
from tests.parts.docblocks import ROOT
from tests.parts.images import make_sif, make_squashfs
from tests.parts.ociimages import make_layer, push_image
from tests.parts.site import Site, SiteNode
from tests.parts.slurmclient import USERS
from tests.slurm.checks import completed, failed

pytestmark = pytest.mark.skipif(apptainer.missing() != "", reason=apptainer.missing())


class Signers(NamedTuple):
    """Signers with a key in the site's keyring, in Apptainer's global one, and in none."""

    trusted: Signer
    known: Signer
    stranger: Signer


@pytest.fixture(scope="module")
def running_site() -> Iterator[Site]:
    if missing := Site.missing():
        pytest.skip(missing)
    with Site(nodes=1) as site:
        yield site


@pytest.fixture(scope="module")
def signers(running_site: Site) -> Signers:
    """Everybody, and the keyrings `pgp-public` and `empty` where the configuration is."""
    directory = running_site.directory
    made = Signers(*(Signer(directory, name) for name in Signers._fields))
    make_keyring(made.trusted, directory)
    (directory / "empty").touch(mode=0o644)
    return made


def make_keyring(signer: Signer, directory: Path) -> None:
    """Make `pgp-public` in a directory, as the documentation has administrators make it."""
    (block,) = [
        block
        for block in docblocks.blocks(ROOT / "docs" / "howto-operate.md", "sh")
        if "apptainer key import" in block.text
    ]
    script = block.text
    for place, instead in {
        "/root/trusted": directory / "trusted",
        "lab.asc": signer.public,
        "/etc/hpcimg": directory,
    }.items():
        assert place in script
        script = script.replace(place, str(instead))
    subprocess.run(["sh", "-euc", script], check=True)


@pytest.fixture
def site(site: Site, signers: Signers) -> Site:
    """The site, which accepts signed images."""
    verify(site)
    return site


def verify(site: Site, keyring: str = "pgp-public") -> None:
    """Let the site accept images signed with a key of this keyring."""
    site.configure(f"[policy]\nverify = sif\nkeyring = {site.directory}/{keyring}\n")


def make_image(site: Site, name: str) -> Path:
    """Make an image that runs, unlike all others, and that nobody signed."""
    files = {"bin/cat": ociimages.program(), "hello": b"it runs\n", "unique": os.urandom(16)}
    return make_sif(site.directory / f"{name}.sif", files)


def serve(site: Site, image: Path) -> str:
    """Serve an image on the web server; return its address."""
    return site.web.put(f"/{image.name}", image.read_bytes(), etag='"1"')


def submit(site: Site, reference: str) -> int:
    """Submit a job that runs its image; return its id."""
    script = 'apptainer --silent exec "$HPCIMG_IMAGE" cat /hello'
    return site.cluster.sbatch(script, f"--comment=container:{reference}")


def runs(site: Site, reference: str) -> None:
    """Check that a job runs its image."""
    assert completed(site, submit(site, reference)) == ["it runs\n"]


def refused(site: Site, reference: str, *words: str) -> None:
    """Check that a job fails with these words, and that nothing of its image is kept."""
    node = site.node("n1")
    before = cached(node)
    said = failed(site, submit(site, reference))
    assert said.startswith(f"hpcimg: {reference} is not verified: ")
    for word in (*words, "Use an image that is signed by somebody whom this site trusts."):
        assert word in said
    assert "it runs" not in said
    assert (cached(node), node.leftovers()) == (before, [])


def cached(node: SiteNode) -> list[Path]:
    """Return what the cache holds of images: files, layers and what is known of them."""
    kept = [*node.cache.glob("blobs/*"), *node.cache.glob("meta/*"), *node.cache.glob("refs/*")]
    return sorted([*node.images(), *kept])


# What is taken, and from where


def by_registry(site: Site, image: Path) -> str:
    site.registry.push_sif(image, f"lab/{image.stem}", "1")
    return f"oras://{site.registry.host}/lab/{image.stem}:1"


def by_path(_: Site, image: Path) -> str:
    return f"file://{image}"


def by_private_path(_: Site, image: Path) -> str:
    shutil.chown(image, USERS[0])  # whose the jobs are
    image.chmod(0o400)
    return f"file://{image}"


@pytest.mark.parametrize("source", [serve, by_registry, by_path, by_private_path])
def test_from_everywhere(site: Site, signers: Signers, source: Callable[[Site, Path], str]) -> None:
    name = source.__name__.replace("_", "-")
    ours, theirs = (make_image(site, f"{name}-{whose}") for whose in ("ours", "theirs"))
    runs(site, source(site, signers.trusted.sign(ours)))
    refused(site, source(site, signers.stranger.sign(theirs)), "made by unknown entity")


# What is refused


def nobody(_: Signers, image: Path) -> Path:
    return image


def change(signers: Signers, image: Path) -> Path:
    data = bytearray(signers.trusted.sign(image).read_bytes())
    data[len(data) // 2] ^= 1  # the file system is by far the largest part
    image.write_bytes(data)
    return image


def add_to_no_group(signers: Signers, image: Path) -> Path:
    return add_part(signers.trusted.sign(image), group=0)


def add_to_the_signed_group(signers: Signers, image: Path) -> Path:
    return add_part(signers.trusted.sign(image), group=1)


def add_to_a_group_of_its_own(signers: Signers, image: Path) -> Path:
    return add_part(signers.trusted.sign(image), group=2)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (nobody, "signature not found for object group 1"),
        (change, "data object integrity compromised"),
        (add_to_no_group, "it has parts that belong to no signed group"),
        (add_to_the_signed_group, "object not signed"),
        (add_to_a_group_of_its_own, "signature not found for object group 2"),
    ],
)
def test_what_is_not_signed(
    site: Site, signers: Signers, made: Callable[[Signers, Path], Path], words: str
) -> None:
    name = made.__name__.replace("_", "-")
    refused(site, serve(site, made(signers, make_image(site, name))), words)


def test_what_has_no_signatures(site: Site) -> None:
    image = make_squashfs(site.directory / "plain.squashfs", {"hello": b"it runs\n"})
    refused(site, serve(site, image), "it is not a SIF file")
    push_image(site.registry, "lab/layers", "1", [make_layer({"hello": b"it runs\n"})])
    layers = f"docker://{site.registry.host}/lab/layers:1"
    refused(site, layers, "an image in layers has no SIF signature")


# What is in the cache already


def test_what_was_cached_before_is_verified_too(site: Site, signers: Signers) -> None:
    ours, theirs = (make_image(site, f"before-{whose}") for whose in ("ours", "theirs"))
    ours, theirs = serve(site, signers.trusted.sign(ours)), serve(site, theirs)
    site.configure()
    runs(site, ours)
    runs(site, theirs)
    verify(site)
    runs(site, ours)
    refused(site, theirs, "signature not found")


def test_a_keyring_of_another_name_verifies_anew(site: Site, signers: Signers) -> None:
    url = serve(site, signers.trusted.sign(make_image(site, "withdrawn")))
    runs(site, url)
    runs(site, url)
    assert site.node("n1").hpcimg("path", url).returncode == 0
    verify(site, "empty")
    refused(site, url, "made by unknown entity")


# Keyrings


def test_an_exported_key_is_no_keyring(site: Site, signers: Signers) -> None:
    url = serve(site, signers.trusted.sign(make_image(site, "exported")))
    verify(site, signers.trusted.public.name)
    said = failed(site, submit(site, url))
    assert said.startswith("hpcimg: [policy] keyring is not a keyring: it is text")


def test_the_global_keyring_counts_too(site: Site, signers: Signers) -> None:
    """Outside of a job, and in another /etc: that of this host is not to be changed."""
    url = serve(site, signers.known.sign(make_image(site, "known")))
    refused(site, url, "made by unknown entity")
    own = shutil.copytree("/etc/apptainer", site.directory / "apptainer")
    script = f"""
mount --bind {own} /etc/apptainer
apptainer key import --global {signers.known.public}
exec {ROOT}/bin/hpcimg stage {url}
"""
    environment = {"PATH": PATH, "HPCIMG_CONF": str(site.conf), "SLURMD_NODENAME": "n1"}
    subprocess.run(["unshare", "--mount", "sh", "-euc", script], env=environment, check=True)
    runs(site, url)
