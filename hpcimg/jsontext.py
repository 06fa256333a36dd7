"""JSON from servers, users and files: one reader, with one message for invalid text."""

from __future__ import annotations

import codecs
import json
from typing import Any

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_NOT_JSON = "it is not JSON"


def read(data: bytes | str) -> Any:
    """Parse a JSON text in UTF-8.

    Raises ValueError with the reason, which never quotes the text: it may contain a password.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if data.startswith(_MARKS):
        raise ValueError("it begins with a byte order mark, and is not JSON in UTF-8")
    try:
        return json.loads(data.decode(errors="replace"))  # like Go's decoder
    except (ValueError, RecursionError):
        raise ValueError(_NOT_JSON) from None


def read_object(data: bytes | str) -> dict[str, Any]:
    """Parse a JSON object in UTF-8. Raises ValueError like `read`."""
    try:
        content = read(data)
    except ValueError as error:
        why = str(error)
        raise ValueError("it is not a JSON object" if why == _NOT_JSON else why) from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004
    return content
