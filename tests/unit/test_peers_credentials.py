"""The credentials that root creates and reads for a worker."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from hpcimg.fetch.contract import PEERS, Whole
from hpcimg.peers.credentials import ASK, HELLO, IMAGE, Identity, Notary
from hpcimg.peers.libmunge import Munge

NODES = ("n1", "n2", "n3")
WHOLE = Whole("v", "sha256-aa", "aa", 5, "", PEERS)


class Plain:
    """A munge whose credentials are what is in them, and which reads none twice."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def encode(self, payload: bytes) -> str:
        return payload.decode()

    def decode(self, credential: str) -> bytes | None:
        if credential in self.read or credential.startswith("of a user"):
            return None
        self.read.add(credential)
        return credential.encode()


def notary(node: str, *, job: str = "7", wanted: str = "w", told: list[Whole] | None = None) -> Any:
    """Return the one of a node."""
    heard = told if told is not None else []
    identity = Identity(job, wanted, node, NODES)
    return Notary(cast("Munge", Plain()), identity, heard.append)


def test_a_question_and_its_answers() -> None:
    told: list[Whole] = []
    asker, leader = notary("n2", told=told), notary("n1")
    [question] = asker.answer(["sign", ASK, "n1", "5", ""])
    assert leader.answer(["read", ASK, question]) == ["n2", "5", ""]
    [hello] = leader.answer(["sign", HELLO, "n2", "5", ""])
    assert asker.answer(["read", HELLO, hello]) == ["n1", "5", ""]
    assert leader.answer(["sign", IMAGE, "n2", "5", "name"]) is None  # it has none yet
    leader.whole = WHOLE
    [image] = leader.answer(["sign", IMAGE, "n2", "5", "name"])
    assert asker.answer(["read", IMAGE, image]) == ["n1", "5", "name"]
    assert told == [WHOLE]


def test_no_credential_is_read_twice_or_as_another_kind() -> None:
    [question] = notary("n2").answer(["sign", ASK, "n1", "5", ""])
    leader = notary("n1")
    assert leader.answer(["read", HELLO, question]) is None
    [question] = notary("n2").answer(["sign", ASK, "n1", "6", ""])
    assert leader.answer(["read", ASK, question])
    assert leader.answer(["read", ASK, question]) is None


@pytest.mark.parametrize(
    "other",
    [notary("n1", job="8"), notary("n1", wanted="x"), notary("n3")],
    ids=["job", "image", "node"],
)
def test_what_is_meant_for_another_is_refused(other: Any) -> None:
    [question] = notary("n2").answer(["sign", ASK, "n1", "5", ""])
    assert other.answer(["read", ASK, question]) is None


def test_what_is_not_of_hpcimg_or_not_of_the_job_is_refused() -> None:
    said = json.dumps([ASK, "7", "w", "n9", "n1", "5", "", None])
    assert notary("n1").answer(["read", ASK, f"hpcimg-peers 1\n{said}"]) is None
    said = said.replace("n9", "n2")
    assert notary("n1").answer(["read", ASK, f"hpcimg-peers 2\n{said}"]) is None
    assert notary("n1").answer(["read", ASK, f"hpcimg-peers 1\n{said}"]) == ["n2", "5", ""]


@pytest.mark.parametrize(
    "request_",
    [["sign", "root", "n1", "5", ""], ["sign", ASK, "n9", "5", ""], ["sign", ASK, "n1"], {}, None],
)
def test_nothing_else_is_signed(request_: Any) -> None:
    assert notary("n2").answer(request_) is None
