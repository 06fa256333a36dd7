"""Node features that say which images a node has had: what is to be set where. Pure.

They come from the jobs that run and their comments, so no node has to report anything. That a
node has evicted an image is not seen: the features are for a preference, never for a constraint.
`etc/job_submit.lua` makes the same names; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hpcimg.slurm import comment, hostlist

PREFIX = "hpcimg_"
IMAGES_MAX = 64  # of the cluster: Slurm keeps a bitmap of all nodes for each feature
_PER_NODE_MAX = 8
_FORGOTTEN_S = 86400.0
# Numbers that a double of Lua 5.1 holds exactly.
_PRIME = 4294967291
_FACTORS = (31, 131)
Seen = dict[str, dict[str, float]]  # node → feature → when a job had the image there


class Running(NamedTuple):
    """A running job: its nodes as Slurm lists them, and its comment."""

    nodes: str
    comment: str


class Node(NamedTuple):
    """A node's features as Slurm has them."""

    name: str
    available: tuple[str, ...]
    active: tuple[str, ...]


class Update(NamedTuple):
    """Features that are to be set on some nodes at once."""

    nodes: tuple[str, ...]
    available: tuple[str, ...]
    active: tuple[str, ...]


def name_of(image: str) -> str:
    """Return the feature of an image, by its reference as a job writes it."""
    parts = []
    for factor in _FACTORS:
        number = 0
        for byte in image.encode():
            number = (number * factor + byte) % _PRIME
        parts.append(f"{number:08x}")
    return PREFIX + "".join(parts)


def look(seen: Seen, jobs: Iterable[Running], *, now: float) -> Seen:
    """Return what was seen, with what runs now, without what is too old or too much."""
    found: Seen = {node: dict(features) for node, features in seen.items()}
    for job in jobs:
        wanted = comment.read(job.comment)
        names = [name_of(text) for _, text in wanted.images[: comment.MAX_IMAGES]]
        try:
            nodes = hostlist.expand(job.nodes) if names else ()
        except ValueError:
            continue
        for node in nodes:
            found.setdefault(node, {}).update(dict.fromkeys(names, now))
    latest: dict[str, float] = {}
    for features in found.values():
        for name, at in features.items():
            latest[name] = max(at, latest.get(name, 0.0))
    kept = set(sorted(latest, key=lambda name: (-latest[name], name))[:IMAGES_MAX])
    return {node: mine for node, all_of in found.items() if (mine := _kept(all_of, kept, now))}


def _kept(features: Mapping[str, float], kept: set[str], now: float) -> dict[str, float]:
    young = [n for n, at in features.items() if n in kept and now - at < _FORGOTTEN_S]
    young.sort(key=lambda name: (-features[name], name))
    return {name: features[name] for name in young[:_PER_NODE_MAX]}


def updates(nodes: Iterable[Node], seen: Mapping[str, Iterable[str]]) -> list[Update]:
    """Return what to set so that nodes have these features and all that are not ours.

    Nodes that are to have the same are in one update; one that has it already is in none.
    """
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for node in nodes:
        ours = tuple(sorted(seen.get(node.name, ())))
        available, active = _others(node.available) + ours, _others(node.active) + ours
        if set(available) != set(node.available) or set(active) != set(node.active):
            alike.setdefault((available, active), []).append(node.name)
    return [Update(tuple(names), *wanted) for wanted, names in alike.items()]


def _others(features: Sequence[str]) -> tuple[str, ...]:
    return tuple(feature for feature in features if not feature.startswith(PREFIX))


def nodes_in(text: str) -> list[Node]:
    """Read what `scontrol --oneliner show node` prints."""
    found = []
    for line in text.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        if "NodeName" in fields:
            lists = (fields.get(name, "") for name in ("AvailableFeatures", "ActiveFeatures"))
            found.append(Node(fields["NodeName"], *(_listed(text) for text in lists)))
    return found


def _listed(text: str) -> tuple[str, ...]:
    return () if text == "(null)" else tuple(filter(None, text.split(",")))
