"""Which images are evicted: decided without touching a file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.cache.plan import Candidate, Disk, Plan, plan_room, plan_share, plan_trim
from hpcimg.cache.policy import Limits

NOW = 1_000_000.0
GIB = 1 << 30
LIMITS = Limits(max_size=100, high=90, low=80, min_free=0, min_age_s=120)
PLENTY = 1 << 40


def image(key: str, size: int, *, age: float = 1000, jobs: tuple[str, ...] = ()) -> Candidate:
    return Candidate(key, size, NOW - age, jobs)


def trim(*candidates: Candidate, free: int = PLENTY, limits: Limits = LIMITS) -> Plan:
    return plan_trim(candidates, free_bytes=free, limits=limits, now=NOW)


def room(
    *candidates: Candidate,
    incoming: int,
    reserved: int = 0,
    written: int = 0,
    free: int = PLENTY,
    floor: int = 0,
) -> Plan:
    return plan_room(
        candidates,
        Disk(free, written_bytes=written, reserved_bytes=reserved),
        incoming_bytes=incoming,
        limits=LIMITS._replace(min_free=floor),
        now=NOW,
    )


def keys(candidates: tuple[Candidate, ...]) -> str:
    return "".join(candidate.key for candidate in candidates)


# The epilog


@pytest.mark.parametrize(
    ("used", "wanted"),
    [(0, 0), (80, 0), (85, 0), (90, 0), (91, 11), (100, 20), (150, 70)],
)
def test_from_above_the_high_watermark_down_to_the_low_one(used: int, wanted: int) -> None:
    assert trim(image("a", used)).wanted_bytes == wanted


@pytest.mark.parametrize(
    ("free", "floor", "wanted"), [(50, 50, 0), (49, 50, 1), (0, 50, 50), (0, 0, 0)]
)
def test_down_to_the_floor_whatever_the_watermarks_say(free: int, floor: int, wanted: int) -> None:
    plan = trim(image("a", 60), free=free, limits=LIMITS._replace(min_free=floor))
    assert plan.wanted_bytes == wanted


def test_the_greater_of_both_needs() -> None:
    assert trim(image("a", 95), free=0, limits=LIMITS._replace(min_free=40)).wanted_bytes == 40
    assert trim(image("a", 95), free=0, limits=LIMITS._replace(min_free=4)).wanted_bytes == 15


def test_least_recently_used_goes_first() -> None:
    plan = trim(image("b", 40, age=500), image("c", 40, age=400), image("a", 40, age=600))
    assert keys(plan.victims) == "abc"
    # Of the same age, in an order that does not change from run to run.
    assert keys(trim(image("b", 1), image("a", 1)).victims) == "ab"


def test_what_was_used_a_moment_ago_stays() -> None:
    plan = trim(image("a", 60, age=119.9), image("b", 60, age=120))
    assert (keys(plan.victims), keys(plan.too_young)) == ("b", "a")


def test_what_a_job_uses_stays_whatever_its_age() -> None:
    plan = trim(image("a", 60, jobs=("1",)), image("b", 60, age=1, jobs=("1", "2")))
    assert (keys(plan.victims), keys(plan.in_use), keys(plan.too_young)) == ("", "ab", "")


# A job that waits


@pytest.mark.parametrize(
    ("incoming", "reserved", "wanted"),
    [(40, 0, 0), (41, 0, 1), (30, 10, 0), (30, 20, 10), (0, 0, 0), (100, 0, 60)],
)
def test_just_enough_room_below_max_size(incoming: int, reserved: int, wanted: int) -> None:
    assert room(image("a", 60), incoming=incoming, reserved=reserved).wanted_bytes == wanted


def test_what_is_half_written_takes_room_too_and_is_not_free_any_more() -> None:
    assert room(image("a", 60), incoming=20, reserved=10, written=15).wanted_bytes == 5
    # The disk counts it by itself.
    assert room(image("a", 6), incoming=2, reserved=1, written=9, free=3).wanted_bytes == 0


def test_room_above_the_floor_too() -> None:
    plan = room(image("a", 60), incoming=20, reserved=5, free=30, floor=10)
    assert plan.wanted_bytes == 5


def test_a_job_at_hand_is_worth_more_than_an_image_used_a_moment_ago() -> None:
    plan = room(image("a", 60, age=0), image("b", 30, age=5), incoming=20)
    assert (keys(plan.victims), plan.too_young) == ("ba", ())


# What is said


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ([], "0 eligible"),
        ([image("a", GIB)], "1.0 GiB eligible"),
        (
            [image("a", 20 * GIB, jobs=("1", "2")), image("b", 21 * GIB, jobs=("2", "3"))],
            "0 eligible, 41.0 GiB in use by 3 jobs (1, 2, 3)",
        ),
        ([image("a", GIB, jobs=("7",))], "0 eligible, 1.0 GiB in use by 1 job (7)"),
        ([image("a", GIB, age=1)], "0 eligible, 1.0 GiB used a moment ago"),
        (
            [image("a", GIB), image("b", GIB, jobs=("1",)), image("c", GIB, age=1)],
            "1.0 GiB eligible, 1.0 GiB in use by 1 job (1), 1.0 GiB used a moment ago",
        ),
    ],
)
def test_what_can_be_freed_and_what_cannot(candidates: list[Candidate], text: str) -> None:
    assert trim(*candidates).describe() == text


# Whatever there is


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        st.integers(0, 1 << 40),
        st.floats(0, NOW),
        st.lists(st.sampled_from("12345"), max_size=2, unique=True).map(tuple),
    ),
    max_size=12,
)
SIZES = st.integers(0, 1 << 42)


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Candidate], Limits, Plan]:
    """Return what there is, the limits, and what is planned."""
    candidates = draw(CANDIDATES)
    low, high, most = sorted(draw(st.tuples(SIZES, SIZES, SIZES)))
    limits = Limits(most, high, low, draw(SIZES), draw(st.floats(0, NOW)))
    free = draw(SIZES)
    if draw(st.booleans()):
        return candidates, limits, plan_trim(candidates, free_bytes=free, limits=limits, now=NOW)
    plan = plan_room(
        candidates,
        Disk(free, reserved_bytes=draw(SIZES), written_bytes=draw(SIZES)),
        incoming_bytes=draw(SIZES),
        limits=limits,
        now=NOW,
    )
    return candidates, limits._replace(min_age_s=0.0), plan


@given(plans())
def test_no_victim_is_in_use_or_young_and_the_unused_and_the_oldest_go_first(
    made: tuple[list[Candidate], Limits, Plan],
) -> None:
    candidates, limits, plan = made
    assert all(not victim.jobs for victim in plan.victims)
    assert all(NOW - victim.last_used >= limits.min_age_s for victim in plan.victims)
    ages = [(not victim.unused, victim.last_used) for victim in plan.victims]
    assert ages == sorted(ages)
    assert not any(victim.pinned for victim in plan.victims)
    # Everything is in one of the four, once.
    parts = plan.victims + plan.in_use + plan.too_young + plan.pinned
    assert sorted(parts) == sorted(candidates)
    assert plan.wanted_bytes >= 0
    assert plan.describe()


@given(CANDIDATES, SIZES, SIZES)
def test_with_all_victims_gone_nothing_more_is_wanted(
    candidates: list[Candidate], free: int, floor: int
) -> None:
    limits = Limits(max_size=1 << 41, high=1 << 40, low=1 << 39, min_free=floor, min_age_s=0)
    plan = plan_trim(candidates, free_bytes=free, limits=limits, now=NOW)
    freed = sum(victim.size_bytes for victim in plan.victims)
    left = [candidate for candidate in candidates if candidate not in plan.victims]
    if freed >= plan.wanted_bytes:
        after = plan_trim(left, free_bytes=free + freed, limits=limits, now=NOW)
        assert after.wanted_bytes == 0


# One user's share


@pytest.mark.parametrize(
    ("coming", "wanted"), [(0, 0), (10, 0), (11, 1), (30, 20), (50, 40), (60, 50)]
)
def test_a_user_makes_room_in_the_own_share(coming: int, wanted: int) -> None:
    found = [
        image("a", 20, age=10)._replace(owner=7),
        image("b", 20, age=30)._replace(owner=7),
        image("c", 10, age=50, jobs=("1",))._replace(owner=7),
        image("d", 1000, age=70)._replace(owner=8),
        image("e", 1000, age=90),
    ]
    limits = LIMITS._replace(user_share=60)
    plan = plan_share(found, 7, coming_bytes=coming, limits=limits, now=NOW)
    assert plan.wanted_bytes == wanted
    assert (keys(plan.victims), keys(plan.in_use)) == ("ba", "c")


def test_what_is_pinned_stays_and_is_told() -> None:
    plan = trim(image("a", 60)._replace(pinned=True), image("b", 50))
    assert keys(plan.victims) == "b"
    assert plan.describe().endswith(", 60 B pinned")


# However small they are


@pytest.mark.parametrize(("under_way", "gone"), [(0, ""), (1, "a"), (2, "ab")])
def test_no_more_images_than_there_may_be(under_way: int, gone: str) -> None:
    limits = LIMITS._replace(max_images=3)
    plan = plan_room(
        [image("c", 0, age=1), image("b", 0, age=2), image("a", 0, age=3)],
        Disk(PLENTY, fetches=under_way), incoming_bytes=0, limits=limits, now=NOW,
    )  # fmt: skip
    assert plan.wanted_files == len(gone)
    assert keys(plan.victims[: plan.wanted_files]) == gone


@pytest.mark.parametrize(("free", "wanted"), [(None, 0), (104, 0), (103, 1), (100, 2), (90, 7)])
def test_inodes_that_stay_free(free: int | None, wanted: int) -> None:
    """An image has two, and one that comes takes four."""
    plan = plan_room(
        [image("a", 0)], Disk(PLENTY, free, fetches=1), incoming_bytes=0,
        limits=LIMITS._replace(min_free_files=100), now=NOW,
    )  # fmt: skip
    assert plan.wanted_files == wanted
    assert plan.possible == (wanted < 2)


def test_a_users_share_of_their_number() -> None:
    own = [image(str(n), 0, age=n)._replace(owner=7) for n in range(4)]
    limits = LIMITS._replace(user_share=50, max_images=6)
    others = [image(f"o{n}", 0, age=99)._replace(owner=8) for n in range(9)]
    plan = plan_share([*own, *others], 7, coming_bytes=0, limits=limits, now=NOW, under_way=1)
    assert plan.wanted_files == 2
    assert keys(plan.victims) == "3210"


def test_the_epilog_looks_at_numbers_too() -> None:
    limits = LIMITS._replace(max_images=2)
    plan = plan_trim([image("a", 0), image("b", 0), image("c", 0)], free_bytes=PLENTY,
                     limits=limits, now=NOW)  # fmt: skip
    assert plan.wanted_files == 1
