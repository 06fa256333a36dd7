"""Errors: their class, their exit code, and one safe sentence."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.errors import HpcimgError, TransientError, Unreachable, from_dict, printable
from tests.parts.node import ROOT

RANGES = {"user": range(10, 20), "transient": range(20, 30), "node": range(30, 40), "bug": [70]}


def all_classes(base: type[HpcimgError] = HpcimgError) -> list[type[HpcimgError]]:
    return [base, *(deeper for sub in base.__subclasses__() for deeper in all_classes(sub))]


@pytest.mark.parametrize("error", all_classes())
def test_exit_code_is_in_the_range_of_its_class(error: type[HpcimgError]) -> None:
    assert error.exit_code in RANGES[error.kind]


def test_there_is_something_to_test_in_each_class() -> None:
    assert {error.kind for error in all_classes()} == set(RANGES)


@pytest.mark.parametrize("error", all_classes())
def test_says_what_why_and_what_to_do(error: type[HpcimgError]) -> None:
    assert str(error("it broke", why="of age", do="Buy one.")) == "it broke: of age. Buy one."
    assert str(error("it broke", why="of age.")).startswith("it broke: of age. ")
    assert error("it broke").do, "somebody always has to know what to do next"


def test_what_a_server_says_does_not_fill_the_output_of_a_job() -> None:
    assert len(str(Unreachable("it broke", why="x" * 100_000))) < 1000


@pytest.mark.parametrize("error", all_classes())
def test_goes_to_another_process_and_back(error: type[HpcimgError]) -> None:
    told = error("what \x1b", why="why \udcff", do="do ü")
    heard = from_dict(json.loads(json.dumps(told.to_dict())))
    assert type(heard) is error
    assert (heard.what, heard.why, heard.do) == (told.what, told.why, told.do)
    assert str(heard) == str(told)


@pytest.mark.parametrize("fields", [{}, {"error": "SystemExit"}, {"error": 5, "what": None}])
def test_what_is_no_error_of_ours_is_a_bug(fields: dict[str, object]) -> None:
    assert from_dict(fields).kind == "bug"


def test_what_a_server_asks_for_is_kept() -> None:
    error = Unreachable("busy")
    error.retry_after_s = 5.0
    assert TransientError.retry_after_s is None


@given(st.text(st.characters()), st.text(st.characters()))
def test_a_message_is_one_printable_line(what: str, why: str) -> None:
    message = str(HpcimgError(what, why=why))
    assert message.isprintable()
    message.encode()


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_is_escaped_needs_no_module_that_is_read_only_then() -> None:
    """The process that fetches may not be able to read one any more."""
    program = (
        "import sys, codecs; from hpcimg.errors import printable; before = set(sys.modules);"
        r"assert printable('\0\x1b\udcff\u2028') == r'\x00\x1b\udcff\u2028';"
        "assert set(sys.modules) == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
