"""JSON without the json module: the same text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.plainjson import dumps

ROOT = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters())
# JSON has no others.
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SIMPLE = st.none() | st.booleans() | st.integers() | FLOATS | TEXT
VALUES = st.recursive(
    SIMPLE, lambda deeper: st.lists(deeper) | st.dictionaries(TEXT, deeper), max_leaves=10
)


@given(VALUES)
def test_the_same_as_the_json_module(value: object) -> None:
    assert dumps(value) == json.dumps(value)
    assert json.loads(dumps(value)) == value


def test_one_line() -> None:
    assert "\n" not in dumps({"a": "x\ny", "b": ["\u2028", ("z",)]})


def test_what_is_not_for_json() -> None:
    with pytest.raises(TypeError, match="set is not for JSON"):
        dumps({"a": {1}})


def test_plain_text_needs_no_json_module() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.plainjson import dumps;"
        "dumps({'uri': 'oras://h/i:1', 'n': [1, 2.5, None, True]}); sys.exit('json' in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, ROOT], check=True)
