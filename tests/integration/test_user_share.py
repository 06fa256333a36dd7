"""What is private to one user takes no more than that user's share of the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.checks import refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Task
from tests.parts.users import NodeWithUsers

MISSING = NodeWithUsers.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)

USERS = {"hpcimg-jo": 3_000_001, "hpcimg-al": 3_000_002}
JO, AL = USERS


class Shares:
    """Users with private images on a node that lets each keep a megabyte."""

    def __init__(self, directory: Path, make_sif: MakeSif) -> None:
        self.node = NodeWithUsers(directory, USERS)
        self.node.configure("[policy]\nmax_user_share = 1M\n")
        self._make_sif = make_sif

    def put(self, user: str, name: str, size_bytes: int = 400_000) -> tuple[str, bytes]:
        """Make an image that this user alone may read; return how a job names it, and it."""
        path = self.node.home(user) / name
        data = self._make_sif(size_bytes=size_bytes)
        path.write_bytes(data)
        path.chmod(0o400)
        os.chown(path, USERS[user], USERS[user])
        self.node.uid = USERS[user]
        return f"container:{path}", data

    def stage(self, job: int, user: str, name: str) -> Task:
        comment, data = self.put(user, name)
        task = staged(self.node, job, comment, data)
        assert task.image.parent.name == str(USERS[user])
        return task


@pytest.fixture
def shares(open_directory: Path, make_sif: MakeSif) -> Shares:
    return Shares(open_directory, make_sif)


def test_the_least_recently_used_of_the_same_user_goes(shares: Shares) -> None:
    others = shares.stage(1, AL, "x")
    first, second = shares.stage(2, JO, "a"), shares.stage(3, JO, "b")
    for job in (1, 2, 3):
        shares.node.epilog(job)
    third = shares.stage(4, JO, "c")
    assert set(shares.node.images()) == {others.image, second.image, third.image}
    assert not first.image.exists()


def test_what_running_jobs_hold_stays(shares: Shares) -> None:
    shares.stage(1, JO, "a")
    shares.stage(2, JO, "b")
    comment, data = shares.put(JO, "c")
    said = ("in your share", "keep 1.0 MiB", "784 KiB in use by 2 jobs", "other jobs")
    refused(shares.node, 3, comment, "NoRoom", *said)
    shares.stage(4, AL, "x")
    shares.node.epilog(1)
    shares.node.uid = USERS[JO]
    staged(shares.node, 5, comment, data)


def test_what_never_fits(shares: Shares) -> None:
    comment, _ = shares.put(JO, "big", 1_200_000)
    refused(shares.node, 1, comment, "TooLarge", "your share", "keep 1.0 MiB")
    assert shares.node.images() == []


def test_what_all_may_read_is_not_counted(shares: Shares) -> None:
    comment, data = shares.put(JO, "big", 1_200_000)
    shares.node.home(JO).chmod(0o755)
    Path(comment.removeprefix("container:")).chmod(0o444)
    staged(shares.node, 1, comment, data)
