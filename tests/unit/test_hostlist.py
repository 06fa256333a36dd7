"""Slurm's lists of nodes, expanded as by `scontrol show hostnames`."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.slurm.hostlist import expand


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n1,n3", ["n1", "n3"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-11,20]", ["n08", "n09", "n10", "n11", "n20"]),
        ("a[1-2]b[3-4]", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("gpu1,n[1-2]-ib,x", ["gpu1", "n1-ib", "n2-ib", "x"]),
        ("n[1-2],n[2-3]", ["n1", "n2", "n3"]),
        ("", []),
    ],
)
def test_lists(text: str, names: list[str]) -> None:
    assert list(expand(text)) == names


@pytest.mark.parametrize(
    "text",
    [
        "n[1-", "n1]", "n[[1]]", "n[3-1]", "n[1-100000000]", "n[a-b]", "n[]", ",n1", "n1,", "n 1",
        "../x", "n[1-9999]m[1-9999]", "n[1-60000],m[1-60000]", "x" * 300, "n\n1", "n[1,,2]",
    ],
)  # fmt: skip
def test_what_is_no_list_or_too_long(text: str) -> None:
    with pytest.raises(ValueError, match=r"of nodes|of a node"):
        expand(text)


@given(st.text(alphabet="n0123456789[]-,.", max_size=200))
def test_it_never_takes_long(text: str) -> None:
    began = time.monotonic()
    try:
        assert len(expand(text)) <= 65_536
    except ValueError:
        pass
    assert time.monotonic() - began < 5
