"""s3:// at a real object store."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.objectstore import OUTSIDER, PRIVATE, PUBLIC, SITE, Identity, ObjectStore
from tests.parts.private import check_private
from tests.parts.relay import Cutter

HOUR = 3600
USER = "hpcimg-s3"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def store() -> Iterator[ObjectStore]:
    if missing := ObjectStore.missing():
        pytest.skip(missing)
    if os.geteuid() != 0 and Path(pwd.getpwuid(os.getuid()).pw_dir, ".aws").exists():
        pytest.skip("this account has keys of its own in ~/.aws")
    with ObjectStore() as store:
        yield store


def configure(node: Node, url: str, keys: Identity | None = None, *, more: str = "") -> None:
    """Let a node's s3:// be an endpoint, with keys of the site's where given."""
    text = f"[s3]\nurl = {url}\n{more}"
    if keys:
        auth_file = node.directory / "s3-credentials"
        auth_file.write_text(keys.file)
        auth_file.chmod(0o600)
        text += f"auth_file = {auth_file}\n"
    node.configure(text)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("samtools.sif", "samtools.sif"),
        ("a b/c+d/100%/x=1,y@2(3)!#4?.sif", "a%20b/c+d/100%25/x=1,y@2(3)!#4%3F.sif"),
        ("f\N{LATIN SMALL LETTER U WITH DIAERESIS}r/x.sif", "f%C3%BCr/x.sif"),
    ],
)
@pytest.mark.parametrize("bucket", [PUBLIC, PRIVATE])
def test_an_object(
    node: Node, store: ObjectStore, make_sif: MakeSif, bucket: str, key: str, written: str
) -> None:
    configure(node, store.url, SITE if bucket == PRIVATE else None)
    first, second = make_sif(), make_sif()
    comment = f"container:s3://{bucket}/{written}"
    store.put(bucket, key, first)
    staged(node, 1, comment, first, how="fetched")
    staged(node, 2, comment, first, how="hit")
    let_pass(node, 2 * HOUR)
    staged(node, 3, comment, first, how="unchanged")
    store.put(bucket, key, second)
    let_pass(node, 2 * HOUR)
    staged(node, 4, comment, second, how="fetched")


def test_what_is_not_there(node: Node, store: ObjectStore) -> None:
    configure(node, store.url, SITE)
    uri = f"s3://{PRIVATE}/nothing.sif"
    refused(node, 1, f"container:{uri}", "NotFound", f"there is nothing at {uri}")
    uri = "s3://no-bucket/x.sif"
    refused(node, 2, f"container:{uri}", "NotFound", f"there is no bucket no-bucket for {uri}")


def test_without_credentials(node: Node, store: ObjectStore, sif: bytes) -> None:
    configure(node, store.url)
    store.put(PRIVATE, "x.sif", sif)
    uri = f"s3://{PRIVATE}/x.sif"
    refused(
        node, 1, f"container:{uri}", "Forbidden", f"{uri} may not be read without credentials",
        "403 AccessDenied", "~/.aws/credentials",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (SITE._replace(secret="other"), "the secret key does not match the access key"),
        (SITE._replace(access="UNKNOWN"), "the access key is not known there"),
        (OUTSIDER, "403 AccessDenied, which can also mean that it is not there"),
    ],
)
def test_credentials_that_do_not_serve(
    node: Node, store: ObjectStore, sif: bytes, keys: Identity, words: str
) -> None:
    if os.geteuid() == 0:
        node.uid = 0  # another user would be tried after the site, and heard in its stead
    store.put(PRIVATE, "x.sif", sif)
    configure(node, store.url, keys)
    refused(
        node, 1, f"container:s3://{PRIVATE}/x.sif", "Forbidden",
        "may not be read with the site's S3 credentials", words,
    )  # fmt: skip
    assert keys.secret not in node.log()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("aws_secret_access_key = hush", "not an INI file"),
        ("[default]\nhush\n", "not an INI file"),
        ("[other]\naws_access_key_id = A\naws_secret_access_key = hush\n", "in [default]"),
        ("[default]\naws_access_key_id = A\n hush\naws_secret_access_key = B\n", "characters"),
    ],
)
def test_a_credentials_file_that_is_none(
    node: Node, store: ObjectStore, text: str, words: str
) -> None:
    configure(node, store.url, SITE, more="shared = yes\n")
    (node.directory / "s3-credentials").write_text(text)
    task = refused(node, 1, f"container:s3://{PUBLIC}/x.sif", "ConfigError", words)
    assert "hush" not in task.printed + node.log()


def test_a_credentials_file_that_is_missing(node: Node, store: ObjectStore) -> None:
    configure(node, store.url, more=f"shared = yes\nauth_file = {node.directory}/nothing\n")
    comment = f"container:s3://{PUBLIC}/x.sif"
    refused(node, 1, comment, "ConfigError", "nothing cannot be read")


def test_variables_of_aws_say_what_the_configuration_does_not(
    node: Node, store: ObjectStore, sif: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(PRIVATE, "variables.sif", sif)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SITE.access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SITE.secret)
    uri = f"s3://{PRIVATE}/variables.sif"
    done = node.hpcimg("stage", uri)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    configure(node, store.url)
    done = node.hpcimg("stage", f"{uri}x")
    assert f"there is nothing at {uri}x" in done.stderr


# Who sees it


@pytest.fixture
def node(open_directory: Path) -> Node:
    """A node in a directory that the job's user can enter."""
    return Node(open_directory)


@AS_ROOT
@pytest.mark.parametrize("shared", ["yes", "no"])
def test_what_the_sites_credentials_fetch(
    node: Node, store: ObjectStore, sif: bytes, shared: str
) -> None:
    store.put(PRIVATE, "x.sif", sif)
    configure(node, store.url, SITE, more=f"shared = {shared}\n")
    comment = f"container:s3://{PRIVATE}/x.sif"
    node.uid = 1234
    image = staged(node, 1, comment, sif, how="fetched").image
    if shared == "yes":
        assert (image.parent.name, image.stat().st_mode & 0o777) == ("images", 0o444)
    else:
        assert image.parent.name == "1234"
        check_private(image, 1234)
    node.uid = 1235
    staged(node, 2, comment, sif, how="hit" if shared == "yes" else "fetched")


@pytest.fixture
def user() -> Iterator[pwd.struct_passwd]:
    """An account with a home, for this test."""
    argv = ["useradd", "--create-home", "--home-dir", f"/tmp/{USER}-{os.getpid()}", USER]
    if not shutil.which("useradd"):
        pytest.skip("not installed here: useradd")
    subprocess.run(argv, check=True, capture_output=True)
    yield pwd.getpwnam(USER)
    subprocess.run(["userdel", "--remove", USER], check=True, capture_output=True)


def give_keys(user: pwd.struct_passwd, text: str, *, name: str = "credentials") -> None:
    """Put AWS's file into a user's home, readable by that user alone."""
    directory = Path(user.pw_dir) / ".aws"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o600)
    for made in (directory, path):
        os.chown(made, user.pw_uid, user.pw_gid)


@AS_ROOT
@pytest.mark.parametrize("site", [None, OUTSIDER])
@pytest.mark.parametrize("name", ["credentials", "config"])
def test_the_users_own_keys(
    node: Node,
    store: ObjectStore,
    sif: bytes,
    user: pwd.struct_passwd,
    site: Identity | None,
    name: str,
) -> None:
    store.put(PRIVATE, "own.sif", sif)
    give_keys(user, SITE.file, name=name)
    configure(node, store.url, site)
    comment = f"container:s3://{PRIVATE}/own.sif"
    node.uid = user.pw_uid
    image = staged(node, 1, comment, sif, how="fetched").image
    assert image.parent.name == str(user.pw_uid)
    check_private(image, user.pw_uid)
    let_pass(node, 2 * HOUR)
    staged(node, 2, comment, sif, how="unchanged")
    # Another user, without keys, gets nothing of it.
    node.uid = pwd.getpwnam("daemon").pw_uid
    refused(node, 3, comment, "Forbidden", "without credentials")


@AS_ROOT
def test_the_users_own_keys_that_do_not_serve(
    node: Node, store: ObjectStore, sif: bytes, user: pwd.struct_passwd
) -> None:
    store.put(PRIVATE, "own.sif", sif)
    configure(node, store.url)
    node.uid = user.pw_uid
    comment, path = f"container:s3://{PRIVATE}/own.sif", f"{user.pw_dir}/.aws/credentials"
    give_keys(user, SITE._replace(secret="hush").file)
    refused(node, 1, comment, "Forbidden", "the secret key does not match", f"Correct {path}")
    give_keys(user, "aws_secret_access_key = hush\n")
    let_pass(node, 60)
    task = refused(node, 2, comment, "UserError", f"{path} cannot be used", "not an INI file")
    assert "hush" not in task.printed + node.log()


# How it comes


@pytest.mark.parametrize("bucket", [PUBLIC, PRIVATE])
def test_a_large_object_whose_transfer_breaks_is_resumed(
    node: Node, store: ObjectStore, make_sif: MakeSif, bucket: str
) -> None:
    data = make_sif(size_bytes=64 << 20)
    store.put(bucket, "large.sif", data)
    with Cutter(store.port, after_bytes=40 << 20) as cutter:
        configure(node, cutter.url, SITE, more="shared = yes\n")
        staged(node, 1, f"container:s3://{bucket}/large.sif", data, how="fetched")
        first, second, *_ = cutter.heads
    assert "range:" not in first.lower()
    assert "range: bytes=" in second.lower()
    assert "authorization: aws4-hmac-sha256" in second.lower()


def test_an_object_that_changes_under_a_transfer_is_not_mixed(
    node: Node, store: ObjectStore, make_sif: MakeSif
) -> None:
    first, second = make_sif(size_bytes=8 << 20), make_sif(size_bytes=8 << 20)
    store.put(PUBLIC, "changing.sif", first)

    def change() -> None:
        store.put(PUBLIC, "changing.sif", second)

    with Cutter(store.port, after_bytes=4 << 20, then=change) as cutter:
        configure(node, cutter.url)
        staged(node, 1, f"container:s3://{PUBLIC}/changing.sif", second, how="fetched")
