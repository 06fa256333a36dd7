"""Who leads, who is whose neighbour, which pieces are whose: decided alike on each node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

# Ports of one range: the first half for questions, the second for the swarm.
_HALF = 8
_NEIGHBOURS = 6  # on either side; all of them are peers for up to 12
_LATE = 5  # neighbours of one who comes when the swarm is there already
_PIECES = 1000  # an image has at least as many, where it is large enough
_PIECE_MIN, _PIECE_MAX = 16 << 10, 16 << 20


def of_leaders(job: str, wanted: str, nodes: Sequence[str]) -> list[str]:
    """Return the nodes in the order in which they would lead (rendezvous hashing).

    Another one for each job and image, so that it is not always the same node's link.
    """

    def weight(node: str) -> bytes:
        return hashlib.sha256(f"{job} {wanted} {node}".encode()).digest()

    return sorted(nodes, key=weight)


def question_port(first: int, job: str) -> int:
    """Return the port that the nodes of a job ask each other at.

    Two jobs that begin on one node at the same moment seldom have the same.
    """
    return first + int(job) % _HALF


def swarm_ports(first: int) -> range:
    """Return the ports of which a node's swarm takes the first that is free."""
    return range(first + _HALF, first + 2 * _HALF)


def neighbours(index: int, count: int) -> list[int]:
    """Return the members that a member connects to: all have about the same, 12 at the most.

    The members stand in a ring, and distances are powers of one number, so that no two are
    far from each other. Of two neighbours the one that came later connects.
    """
    if index >= count:  # it came when the others were told about each other
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
    """Return how long the pieces of an image are, a power of two."""
    length = _PIECE_MIN
    while length < _PIECE_MAX and size_bytes // (2 * length) >= _PIECES:
        length *= 2
    return length
