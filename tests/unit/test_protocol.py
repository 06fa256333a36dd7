"""The messages between a worker and the process that started it."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from hpcimg.fetch.contract import Blob, Declined, Offer, Unchanged
from hpcimg.fetch.settings import Place, Settings
from hpcimg.reference import Reference
from hpcimg.worker import main, protocol
from hpcimg.worker.accounts import Account
from hpcimg.worker.protocol import (
    Advance,
    Awaiting,
    Complete,
    Convert,
    Converted,
    Digest,
    DigestWanted,
    Done,
    Failed,
    Fetch,
    Found,
    Layer,
    Leading,
    Moved,
    Offering,
    Published,
    Retrying,
    Rewound,
    Share,
    Start,
    Verify,
    Wanted,
)

SETTINGS = Settings(8, 1.5, 10, 60, places=(Place("h/x", True, "text"),), networks=("10.0.0.0/8",))
ORDERS = (
    Fetch(Reference("docker", "h/x:1"), SETTINGS, "v"),
    Convert("docker://h/x:1", "{}", (5, 1 << 40), "/work", "sif", "zstd:1", 1 << 40),
    Verify("docker://h/x:1", "sif", "/keys", "", "/work"),
    Share(
        "docker://h/x:1", "a", "7", "n1", ("n1", "n2"), 8478, ("10.0.0.0/8",), "/work", 5, 9, 60, 0
    ),
)
A = "a" * 64
REPORTS = (
    Offering(Offer("v", None, "", "{}", (Blob(A, 5), Blob(A, 0)), ("[]", "\udcff"))),
    Offering(Offer("v", 12)),
    DigestWanted(None), DigestWanted(3), Moved(None, 1 << 40, None), Moved(0, 1, 2), Rewound(1),
    Complete(1),
    Retrying("\x1b[31m\udc00", 1.5), Converted(1, None, 0), Done(), Unchanged(), Declined(),
    Leading(), Awaiting("fetching on n1", 5), Found(),
    Failed("NotFound", "what", "why", "do", "traceback"),
)  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("account", [None, Account(1, 2, (3, 4)), Account(1, 2, ())])
def test_orders_arrive_as_they_were_given(order: protocol.Order, account: Account | None) -> None:
    start = Start(account, 1 << 50, order)
    found = protocol.to_worker(protocol.encode(start))
    assert (type(found), found) == (Start, start)
    assert isinstance(found, Start)
    assert type(found.order) is type(order)


@pytest.mark.parametrize(
    "answer",
    [
        Wanted((0, 2)), Wanted(()), Declined(), Layer(3), Digest("12"), Advance("fetching", 5),
        Published(5),
    ],
)  # fmt: skip
def test_answers_arrive_as_they_were_given(answer: protocol.Answer) -> None:
    found = protocol.to_worker(protocol.encode(answer))
    assert (type(found), found) == (type(answer), answer)


@pytest.mark.parametrize("report", REPORTS)
def test_reports_arrive_as_they_were_given(report: protocol.Report) -> None:
    line = protocol.encode(report)
    assert line.count(b"\n") == 1
    found = protocol.from_worker(line)
    assert (type(found), found) == (type(report), report)


@pytest.mark.parametrize(
    "said",
    [
        None, 1, "Done", {}, [], [[]], [None], ["Start", None, 1, []], ["Wanted", []], ["Done", 1],
        ["Moved", 0, "1", 2], ["Moved", 0, 1.0, 2], ["Moved", 0, True, 2], ["Moved", 0, 1],
        ["Rewound", "x"], ["Retrying", 1, 1.5], ["Retrying", "why", "soon"],
        ["Offering", None], ["Offering", ["v", 1, "", "", [["34"]], []]],
        ["Offering", ["v", 1, "", "", {}, []]], ["Failed", "NotFound", "what", "why", None, ""],
        # What cannot be.
        ["Moved", 0, -1, 2], ["Moved", -1, 1, 2], ["Moved", 0, 1, 1 << 60], ["Rewound", -1],
        ["Retrying", "why", -0.5], ["Retrying", "why", float("nan")],
        ["Retrying", "why", float("inf")], ["Converted", 1, 2, -1], ["Converted", 1, 2, 1 << 99],
        ["Offering", ["v", -1, "", "", [], []]], ["Offering", ["v", 1, "", "", [[A, -1]], []]],
    ],
)  # fmt: skip
def test_what_no_worker_says_is_no_message(said: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        protocol.from_worker(json.dumps(said).encode())


def test_what_is_kept_or_shown_has_an_end() -> None:
    long = "x" * 1_000_000
    failed = protocol.from_worker(protocol.encode(Failed("NotFound", long, long, long, long)))
    assert isinstance(failed, Failed)
    assert sum(map(len, failed)) < 20_000
    retrying = protocol.from_worker(protocol.encode(Retrying(long, 1)))
    assert isinstance(retrying, Retrying)
    assert len(retrying.why) < 10_000


def test_what_is_no_json_is_no_message() -> None:
    for line in (b"", b"x", b"\xff", b"[" * 5):
        with pytest.raises(ValueError):  # noqa: PT011
            protocol.from_worker(line)


def test_an_answer_is_for_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come in the order of the questions; here the second waits for the first."""
    asked: list[int | None] = []
    found: dict[int, str] = {}
    parent = main._Parent.__new__(main._Parent)
    parent._asking = threading.Lock()

    def ask(number: int) -> None:
        found[number] = parent.digest(number)

    second = threading.Thread(target=ask, args=(1,))

    def say(question: DigestWanted) -> None:
        asked.append(question.layer)
        if question.layer == 0:
            second.start()
            second.join(0.1)

    monkeypatch.setattr(parent, "say", say)
    monkeypatch.setattr(parent, "hear", lambda: (Digest(f"digest {asked.pop(0)}"), []))
    # Without turns, the second takes what the first asked for.
    ask(0)
    second.join()
    assert found == {0: "digest 0", 1: "digest 1"}
