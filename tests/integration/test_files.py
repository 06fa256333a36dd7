"""Images by path: those that all can read are shared, those of one user stay private."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcimg.errors import Damaged
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.reference import Reference
from hpcimg.sources import files
from tests.integration.checks import failed, got, let_pass, refused, staged, together
from tests.integration.conftest import MakeSif, Start
from tests.parts.daemon import TIMEOUT_S
from tests.parts.images import make_squashfs
from tests.parts.node import Node
from tests.parts.parents import Parent
from tests.parts.private import check_private

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act for several users")
HOUR = 3600


@pytest.fixture
def path(open_directory: Path, sif: bytes) -> Path:
    """An image that everybody may read."""
    path = open_directory / "x.sif"
    path.write_bytes(sif)
    path.chmod(0o644)
    return path


# What all may read


def test_a_path_and_its_uri_are_the_same(node: Node, path: Path, sif: bytes) -> None:
    first = staged(node, 1, f"container:{path}", sif, how="fetched")
    second = staged(node, 2, f"container:file://{path}", sif, how="unchanged")
    assert first.image == second.image
    assert first.image.parent == node.cache / "images"
    assert node.record(2)["images"][0]["uri"] == f"file://{path}"


def test_squashfs(node: Node, open_directory: Path) -> None:
    path = make_squashfs(open_directory / "x", {"a": b"b"}, compression="zstd")
    task = staged(node, 1, f"container:{path}", path.read_bytes())
    assert task.image.suffix == ".squashfs"


def test_a_link_is_followed(node: Node, path: Path, sif: bytes) -> None:
    link = path.with_name("link.sif")
    link.symlink_to(path.name)
    task = staged(node, 1, f"container:{link}", sif)
    assert not task.image.is_symlink()


def test_a_file_that_is_still_the_same_is_not_copied_again(
    node: Node, path: Path, sif: bytes
) -> None:
    staged(node, 1, f"container:{path}", sif)
    let_pass(node, HOUR + 1)
    staged(node, 2, f"container:{path}", sif, how="unchanged")
    staged(node, 3, f"container:{path}", sif, how="hit")


def test_a_file_that_has_changed_is(node: Node, path: Path, make_sif: MakeSif) -> None:
    old = staged(node, 1, f"container:{path}", path.read_bytes())
    before, new = path.stat(), make_sif()
    # The same size and date, as rsync and unpacking leave behind.
    fresh = path.with_name("fresh")
    fresh.write_bytes(new)
    os.utime(fresh, ns=(before.st_mtime_ns, before.st_mtime_ns))
    fresh.rename(path)
    task = staged(node, 2, f"container:{path}", new, how="fetched")
    assert old.image != task.image
    assert old.image.exists()


def test_a_link_that_was_moved(node: Node, path: Path, sif: bytes, make_sif: MakeSif) -> None:
    other, link = path.with_name("other.sif"), path.with_name("current.sif")
    other.write_bytes(make_sif())
    other.chmod(0o644)
    link.symlink_to(path)
    staged(node, 1, f"container:{link}", sif)
    link.unlink()
    link.symlink_to(other)
    staged(node, 2, f"container:{link}", other.read_bytes(), how="fetched")
    staged(node, 3, f"container:{link}", other.read_bytes(), how="hit")


def test_a_file_that_is_written_in_place_with_its_old_date(
    node: Node, path: Path, sif: bytes, make_sif: MakeSif
) -> None:
    staged(node, 1, f"container:{path}", sif)
    before, new = path.stat(), make_sif()
    assert len(new) == len(sif)
    path.write_bytes(new)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    staged(node, 2, f"container:{path}", new, how="fetched")


def test_a_file_that_was_removed(node: Node, path: Path, sif: bytes) -> None:
    staged(node, 1, f"container:{path}", sif)
    path.unlink()
    refused(node, 2, f"container:{path}", "NotFound", "there is no file")
    done = node.hpcimg("path", str(path))
    assert (done.returncode, done.stdout) == (12, "")


def test_a_file_that_is_replaced_while_it_is_copied(path: Path, sif: bytes) -> None:
    """The copy is complete, and the next job gets the new file."""

    class Replaces(Parent):
        def offer(self, offer: Offer) -> Mapping[int, int] | None:
            path.rename(path.with_name("old.sif"))
            path.write_bytes(b"new")
            return super().offer(offer)

    descriptor = os.memfd_create("image")
    settings = Settings(
        tries=1, deadline=time.monotonic() + 9, connect_timeout_s=1, stall_timeout_s=1
    )
    sink = Sink(descriptor, Replaces())
    files.fetch(Reference("file", str(path)), sink, validator="", settings=settings)
    assert os.pread(descriptor, len(sif) + 1, 0) == sif
    os.close(descriptor)


def test_a_file_that_changes_while_it_is_copied(path: Path) -> None:
    class Changes(Parent):
        def offer(self, offer: Offer) -> Mapping[int, int] | None:
            with path.open("ab") as file:
                file.write(b"more")
            return super().offer(offer)

    descriptor = os.memfd_create("image")
    settings = Settings(
        tries=1, deadline=time.monotonic() + 9, connect_timeout_s=1, stall_timeout_s=1
    )
    sink = Sink(descriptor, Changes())
    with pytest.raises(Damaged, match="changed while it was copied"):
        files.fetch(Reference("file", str(path)), sink, validator="", settings=settings)
    os.close(descriptor)


# What is no image


def test_what_is_not_a_file(start: Start, node: Node, open_directory: Path) -> None:
    os.mkfifo(open_directory / "fifo")
    (open_directory / "fifo").chmod(0o666)
    (open_directory / "directory").mkdir()
    named = [
        open_directory / "fifo",
        open_directory / "directory",
        "/dev/null",
        "/dev/zero",
        "/proc",
    ]
    began = time.monotonic()
    tasks = together(start, node, *(f"container:{path}" for path in named))
    for job, task in tasks.items():
        failed(node, job, task, "NotAnImage", f"{named[job - 1]} is not a file")
    # Nobody waited for somebody to write to the FIFO.
    assert time.monotonic() - began < TIMEOUT_S


def test_a_socket(node: Node, open_directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(open_directory / "socket"))
        (open_directory / "socket").chmod(0o666)
        refused(node, 1, f"container:{open_directory}/socket", "Unreachable", "cannot be read now")


def test_what_is_not_there(start: Start, node: Node, path: Path) -> None:
    (path.parent / "loop").symlink_to("loop")
    (path.parent / "gone").symlink_to("nowhere")
    missing = [
        path.with_name("y.sif"),
        path.parent / "no" / "y.sif",
        path / "y.sif",
        path.parent / "gone",
    ]
    unreachable = [path.parent / "loop", path.with_name("x" * 300)]
    tasks = together(start, node, *(f"container:{path}" for path in [*missing, *unreachable]))
    for job, task in tasks.items():
        words = "there is no file" if job <= len(missing) else "cannot be followed"
        failed(node, job, task, "NotFound", words)


def test_what_is_no_image(start: Start, node: Node, path: Path, sif: bytes) -> None:
    contents = [b"", b"<html>", sif[:1000], sif[:-1]]
    names = [path.with_name(f"{number}.sif") for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        name.write_bytes(content)
        name.chmod(0o644)
    tasks = together(start, node, *(f"container:{name}" for name in names))
    errors = ["NotAnImage", "NotAnImage", "Damaged", "Damaged"]
    for (job, task), error in zip(tasks.items(), errors, strict=True):
        failed(node, job, task, error)
    assert node.images() == []


# What one user may read


@pytest.fixture
def private(path: Path) -> Path:
    """An image that uid 1 alone may read."""
    os.chown(path, 1, 1)
    path.chmod(0o400)
    return path


@pytest.fixture
def shared_node(open_directory: Path) -> Node:
    """A node below a directory that everybody may enter, with jobs of uid 1."""
    directory = open_directory / "node"
    directory.mkdir()
    return Node(directory, uid=1)


@AS_ROOT
def test_an_image_of_ones_own(shared_node: Node, private: Path, sif: bytes) -> None:
    node = shared_node
    task = staged(node, 1, f"container:{private}", sif, how="fetched")
    assert task.image.parent == node.cache / "users" / "1"
    check_private(task.image, 1)
    assert task.image.parent.stat().st_uid == 0
    staged(node, 2, f"container:{private}", sif, how="hit")
    let_pass(node, HOUR + 1)
    staged(node, 3, f"container:{private}", sif, how="unchanged")
    # What is written down of it is nobody else's business either.
    about = [*node.cache.glob("meta/*"), *node.cache.glob("refs/*"), *node.state.glob("jobs/*/*")]
    assert about
    for path in about:
        if path.parent.parent == node.state / "jobs":
            check_private(path, 1)
        else:
            assert path.stat().st_mode & 0o077 == 0


@AS_ROOT
def test_an_image_of_somebody_elses(shared_node: Node, private: Path, sif: bytes) -> None:
    node = shared_node
    comment = f"container:{private}"
    staged(node, 1, comment, sif)
    node.uid = 2
    # Neither by the short way, which knows the reference by now, nor by the long one.
    refused(node, 2, comment, "Forbidden", f"{private} may not be read", "Check who may read it")
    refused(node, 3, f"container:file://{private}", "Forbidden")
    assert {job for _, job in node.leases()} == {"1"}
    node.uid = 1
    staged(node, 4, comment, sif, how="hit")


@AS_ROOT
def test_two_users_with_the_same_content_each_have_their_own(
    shared_node: Node, private: Path, sif: bytes
) -> None:
    node = shared_node
    other = private.with_name("other.sif")
    other.write_bytes(sif)
    other.chmod(0o400)
    os.chown(other, 2, 2)
    mine = staged(node, 1, f"container:{private}", sif)
    node.uid = 2
    theirs = staged(node, 2, f"container:{other}", sif)
    assert mine.image.stat().st_ino != theirs.image.stat().st_ino
    check_private(theirs.image, 2)


@AS_ROOT
def test_a_file_that_the_users_group_may_read(shared_node: Node, private: Path, sif: bytes) -> None:
    os.chown(private, 0, 1)
    private.chmod(0o440)
    task = staged(shared_node, 1, f"container:{private}", sif)
    assert task.image.parent.name == "1"


@AS_ROOT
def test_a_file_in_a_directory_that_is_closed_to_others(
    shared_node: Node, path: Path, sif: bytes
) -> None:
    directory = path.with_name("home")
    directory.mkdir(mode=0o700)
    os.chown(directory, 1, 1)
    path.rename(directory / "x.sif")
    task = staged(shared_node, 1, f"container:{directory}/x.sif", sif)
    assert task.image.parent.name == "1"


@AS_ROOT
def test_root_reads_nothing_for_a_user(shared_node: Node, path: Path) -> None:
    path.chmod(0o400)
    refused(shared_node, 1, f"container:{path}", "Forbidden")
    link = path.with_name("link.sif")
    link.symlink_to(path)
    os.chown(link, 1, 1, follow_symlinks=False)
    refused(shared_node, 2, f"container:{link}", "Forbidden")
    # Nor for a job of root's own: what it stages is shared.
    shared_node.uid = 0
    refused(shared_node, 3, f"container:{path}", "Forbidden")
    assert shared_node.images() == []


@AS_ROOT
def test_what_is_opened_to_all_is_shared(shared_node: Node, private: Path, sif: bytes) -> None:
    node = shared_node
    staged(node, 1, f"container:{private}", sif)
    private.chmod(0o444)
    node.uid = 2
    task = staged(node, 2, f"container:{private}", sif, how="fetched")
    assert task.image.parent.name == "images"


@AS_ROOT
def test_what_is_closed_later_is_private_from_then_on(
    shared_node: Node, path: Path, sif: bytes
) -> None:
    node = shared_node
    before = staged(node, 1, f"container:{path}", sif)
    os.chown(path, 1, 1)
    path.chmod(0o400)
    node.uid = 2
    refused(node, 2, f"container:{path}", "Forbidden")
    node.uid = 1
    task = staged(node, 3, f"container:{path}", sif, how="fetched")
    assert task.image.parent.name == "1"
    # Whoever has the shared one keeps it.
    got(node, 1, before, sif)


@AS_ROOT
def test_a_user_whom_this_node_does_not_know(shared_node: Node, path: Path, sif: bytes) -> None:
    node = shared_node
    node.uid = 3_999_999_999
    staged(node, 1, f"container:{path}", sif)
    path.chmod(0o400)
    refused(node, 2, f"container:{path}", "NodeError", "uid 3999999999 has no account")


@AS_ROOT
def test_a_user_whom_slurm_alone_knows(shared_node: Node, path: Path, sif: bytes) -> None:
    """As with nss_slurm: uid and gid are the job's, and there is no other group and no home."""
    node = shared_node
    node.uid, node.gid = 3_999_999_999, 77_777
    os.chown(path, 0, node.gid)
    path.chmod(0o040)
    task = staged(node, 1, f"container:{path}", sif)
    assert task.image.parent.name == str(node.uid)
    os.chown(path, 0, 77_778)
    let_pass(node, HOUR + 1)
    refused(node, 2, f"container:{path}", "Forbidden", "permission denied. Check who may read it")
    os.chown(path, 0, 0)
    node.gid = 0  # root's is nobody's
    refused(node, 3, f"container:{path}", "NodeError", "that is root's")


@AS_ROOT
def test_the_account_that_fetches(shared_node: Node, private: Path, sif: bytes) -> None:
    node = shared_node
    # With an account that may read it, it is no secret.
    node.configure("[stage]\naccount = daemon\n")
    node.uid = 2
    task = staged(node, 1, f"container:{private}", sif)
    assert task.image.parent.name == "images"
    node.configure("[stage]\naccount = root\n")
    refused(node, 2, f"container:{private}", "ConfigError", "[stage] account is root")
    node.configure("[stage]\naccount = nobody-knows\n")
    refused(node, 3, f"container:{private}", "ConfigError", "no account nobody-knows")
