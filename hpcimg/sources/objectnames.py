"""Names of objects in references: one spelling each, so that patterns can match it."""

from __future__ import annotations

import string
from urllib.parse import quote, unquote

from hpcimg.errors import BadReference
from hpcimg.reference import Reference

# Characters allowed in a reference, except ? and %: all others are written as %XX.
_PLAIN = string.ascii_letters + string.digits + "-._~:/#[]@!&()*+,;="


def decode(reference: Reference, written: str, *, before: str = "") -> str:
    """Return the name that is `written` in a reference, behind `before`.

    What a reference cannot have, and `?` and `%`, is written as %XX, all else as it
    is. Raises BadReference for another spelling.
    """
    try:
        name = unquote(written, errors="strict")
    except UnicodeDecodeError:
        raise BadReference(f"{reference.uri} names no object", why="it is not UTF-8") from None
    right = quote(name, safe=_PLAIN)
    if right != written:
        raise BadReference(
            f"{reference.uri} is not the canonical spelling of that object",
            why=f"only other characters are written as %XX; did you mean {reference.scheme}://{before}{right}",
        )
    return name
