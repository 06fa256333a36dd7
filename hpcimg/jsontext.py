"""JSON that a server, a user or a file has: read in one way, with one sentence for what is none."""

from __future__ import annotations

import codecs
import json
from typing import Any

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_NOT_JSON = "it is not JSON"


def read(data: bytes | str) -> Any:
    """Return what a JSON text in UTF-8 says.

    Raises ValueError with what is wrong, never with a part of the text: it may hold a password.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if data.startswith(_MARKS):
        raise ValueError("it begins with a byte order mark, and is not JSON in UTF-8")
    try:
        return json.loads(data.decode(errors="replace"))  # as Go's reader has it
    except (ValueError, RecursionError):
        raise ValueError(_NOT_JSON) from None


def read_object(data: bytes | str) -> dict[str, Any]:
    """Return what a JSON object in UTF-8 says. Raises ValueError likewise."""
    try:
        content = read(data)
    except ValueError as error:
        why = str(error)
        raise ValueError("it is not a JSON object" if why == _NOT_JSON else why) from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004
    return content
