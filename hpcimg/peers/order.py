"""Leaders, neighbours and pieces of members, computed alike on each node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

# Ports of one range: the first half for requests, the second for the swarm.
_HALF = 8
_NEIGHBOURS = 6  # in each direction; with up to 12 others, all are neighbours
_LATE = 5  # neighbours of a member that joins a running swarm
_PIECES = 1000  # the least number of pieces of an image, if it is large enough
_PIECE_MIN, _PIECE_MAX = 16 << 10, 16 << 20


def of_leaders(job: str, wanted: str, nodes: Sequence[str]) -> list[str]:
    """Return the nodes in the order in which they lead (rendezvous hashing).

    The order differs between jobs and images, so that the load is spread over the nodes' links.
    """

    def weight(node: str) -> bytes:
        return hashlib.sha256(f"{job} {wanted} {node}".encode()).digest()

    return sorted(nodes, key=weight)


def question_port(first: int, job: str) -> int:
    """Return the port for requests between the nodes of a job.

    Two jobs that start on one node at the same time rarely get the same port.
    """
    return first + int(job) % _HALF


def swarm_ports(first: int) -> range:
    """Return the candidates for the swarm's port on a node, which takes the first free one."""
    return range(first + _HALF, first + 2 * _HALF)


def neighbours(index: int, count: int) -> list[int]:
    """Return the members that a member connects to, so that each has at most about 12 neighbours.

    The members form a ring, and the distances to neighbours are powers of one number, so that
    paths between members are short. Of two neighbours, the one that joined later connects.
    """
    if index >= count:  # it joined after the others were told about each other
        step = max(1, count // _LATE)
        return [0, *range(1 + index % step, count, step)][: _LATE + 1]
    ring: set[int] = set()
    farthest = max(1, count // 2)
    for number in range(_NEIGHBOURS):
        distance = max(number + 1, round(farthest ** (number / (_NEIGHBOURS - 1))))
        if distance <= farthest:
            ring |= {(index + distance) % count, (index - distance) % count}
    return sorted(other for other in ring if other < index)


def piece_length(size_bytes: int) -> int:
    """Return the piece length for an image, a power of two."""
    length = _PIECE_MIN
    while length < _PIECE_MAX and size_bytes // (2 * length) >= _PIECES:
        length *= 2
    return length
