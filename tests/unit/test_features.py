"""Node features for images, and the updates that set them."""

from __future__ import annotations

from hpcimg.slurm.features import (
    IMAGES_MAX,
    PREFIX,
    Node,
    Running,
    Update,
    look,
    name_of,
    nodes_in,
    updates,
)

NOW = 100_000.0
A, B = name_of("docker://h/a:1"), name_of("/shared/b.sif")
ON_TWO = Running("n[1-2]", "container:docker://h/a:1")


def test_names() -> None:
    assert A == "hpcimg_15c9087f79abf1da"
    assert A != B
    assert name_of("docker://h/a:2") != A


def test_what_runs_is_seen_and_kept_for_a_day() -> None:
    seen = look({}, [ON_TWO, Running("n2", "x container:y=/shared/b.sif")], now=NOW)
    assert seen == {"n1": {A: NOW}, "n2": {A: NOW, B: NOW}}
    seen = look(seen, [Running("n1", "container:docker://h/a:1")], now=NOW + 86_000)
    assert seen == {"n1": {A: NOW + 86_000}, "n2": {A: NOW, B: NOW}}
    assert look(seen, [], now=NOW + 86_400) == {"n1": {A: NOW + 86_000}}


def test_jobs_that_say_nothing() -> None:
    jobs = [Running("n1", "(null)"), Running("n[1", ON_TWO.comment), Running("", ON_TWO.comment)]
    assert look({}, jobs, now=NOW) == {}


def test_no_more_than_eight_on_a_node_and_some_in_all() -> None:
    jobs = [Running(f"n{number}", f"container:/{number}") for number in range(IMAGES_MAX + 9)]
    seen = look({}, jobs, now=NOW)
    assert len({name for features in seen.values() for name in features}) == IMAGES_MAX
    seen = look({}, [ON_TWO], now=NOW - 1)
    many = Running("n1", " ".join(f"container:/{number}" for number in range(20)))
    seen = look(seen, [many], now=NOW)
    assert len(seen["n1"]) == 8
    assert A not in seen["n1"]
    assert seen["n2"] == {A: NOW - 1}


def test_features_of_others_stay() -> None:
    nodes = [
        Node("n1", ("gpu", f"{PREFIX}old", "ib"), ("ib", f"{PREFIX}old")),
        Node("n2", ("gpu", "ib"), ("ib",)),
        Node("n3", (), ()),
        Node("n4", (A,), (A,)),
        Node("n5", (f"{PREFIX}old",), (f"{PREFIX}old",)),
    ]
    seen = {name: {A: NOW} for name in ("n1", "n2", "n3", "n4")}
    assert updates(nodes, seen) == [
        Update(("n1", "n2"), ("gpu", "ib", A), ("ib", A)),
        Update(("n3",), (A,), (A,)),
        Update(("n5",), (), ()),
    ]


def test_what_scontrol_says() -> None:
    text = (
        "NodeName=n1 Arch=x86_64 AvailableFeatures=gpu,ib ActiveFeatures=ib OS=Linux 6.1\n"
        "NodeName=n2 AvailableFeatures=(null) ActiveFeatures=(null)\n\n"
    )
    assert nodes_in(text) == [Node("n1", ("gpu", "ib"), ("ib",)), Node("n2", (), ())]
