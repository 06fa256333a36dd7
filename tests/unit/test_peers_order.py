"""The order of leaders, and neighbours: the same on each node, evenly spread, limited."""

from __future__ import annotations

import pytest

from hpcimg.peers import order


def test_all_nodes_have_one_order_whatever_order_their_list_has() -> None:
    nodes = [f"n{number}" for number in range(50)]
    assert order.of_leaders("7", "a", nodes) == order.of_leaders("7", "a", nodes[::-1])


def test_the_leader_is_another_one_for_other_jobs() -> None:
    nodes = [f"n{number}" for number in range(16)]
    first = {order.of_leaders(str(job), "a", nodes)[0] for job in range(200)}
    assert len(first) > 12


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 13, 16, 64, 1000])
def test_all_are_connected_and_nobody_has_too_many(count: int) -> None:
    pairs = [(index, other) for index in range(count) for other in order.neighbours(index, count)]
    assert all(other < index for index, other in pairs)
    degree = [sum(index in pair for pair in pairs) for index in range(count)]
    assert max(degree) <= 12
    reached, edge = {0}, {0}
    far = 0
    while edge:
        edge = {i for pair in pairs for i in pair if edge & set(pair)} - reached
        reached |= edge
        far += bool(edge)
    assert reached == set(range(count))
    assert far <= 6


@pytest.mark.parametrize("late", [16, 17, 40])
def test_who_comes_late_gets_some_of_those_who_are_there(late: int) -> None:
    found = order.neighbours(late, 16)
    assert found[0] == 0
    assert len(found) <= 6
    assert max(found) < 16


@pytest.mark.parametrize(
    ("size", "length"),
    [(1, 16 << 10), (20_000_000, 16 << 10), (1 << 30, 1 << 20), (100 << 30, 16 << 20)],
)
def test_an_image_has_a_thousand_pieces_where_it_is_large_enough(size: int, length: int) -> None:
    assert order.piece_length(size) == length


def test_ports_of_one_range() -> None:
    questions = {order.question_port(8478, str(job)) for job in range(100)}
    assert questions | set(order.swarm_ports(8478)) == set(range(8478, 8494))
