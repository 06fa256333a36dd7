"""The images of pending jobs, soonest first and within limits."""

from __future__ import annotations

import pytest

from hpcimg.slurm.planned import Limits, Planned, choose

NOW = 1000.0
LIMITS = Limits(within_s=100, per_user=2, images=3)


def job(start: float, image: str, *, uid: int = 1, nodes: str = "n1") -> Planned:
    return Planned(start, uid, nodes, f"container:{image}")


def test_the_soonest_first_each_once_and_none_that_is_far_away() -> None:
    jobs = [
        job(1060, "/c"),
        job(1050, "/b"),
        job(900, "/a", uid=2),
        job(1060, "/a"),
        job(1101, "/d"),
    ]
    assert choose(jobs, LIMITS, now=NOW) == ["/a", "/b", "/c"]


def test_the_limit_of_one_user() -> None:
    jobs = [job(1000 + number, f"/{number}") for number in range(5)]
    assert choose([*jobs, job(1050, "/x", uid=2)], LIMITS, now=NOW) == ["/0", "/1", "/x"]


def test_the_limit_of_all() -> None:
    jobs = [job(1000 + number, f"/{number}", uid=number) for number in range(5)]
    assert choose(jobs, LIMITS, now=NOW) == ["/0", "/1", "/2"]


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("n[1-3]", ["/x"]),
        ("m1,n1", ["/x"]),
        ("n[2-3]", []),
        ("n11", []),
        ("", []),
        ("(null)", []),
        ("n[1-", []),
        ("n[0-999999999]", []),
    ],
)
def test_on_one_node(nodes: str, found: list[str]) -> None:
    assert choose([job(NOW, "/x", nodes=nodes)], LIMITS, now=NOW, node="n1") == found


@pytest.mark.parametrize(
    "comment",
    ["", "(null)", "no image", "containers:/x.sif", "container:a=/x container:a=/y", "{" * 5000],
)
def test_comments_that_ask_for_nothing(comment: str) -> None:
    assert choose([Planned(NOW, 1, "n1", comment)], LIMITS, now=NOW) == []
