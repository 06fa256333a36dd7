"""The job's comment: which images it asks for.

Imports nothing: the way to a warm hit reads comments with it.
"""

MARK = "container:"
MAX_IMAGES = 32
MAX_NAME = 64
_SEPARATORS = ";\t\n\r\v\f"
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")


def wanted(comment: str) -> list[tuple[str, str]]:
    """Return (name, reference) for each `container:` token, in order.

    Tokens are separated by ASCII white space or `;`; the name is "" where none was
    given. A token written twice counts once. Nothing is checked: what is malformed
    comes back as it is.
    """
    if MARK not in comment:
        return []
    for separator in _SEPARATORS:
        comment = comment.replace(separator, " ")
    tokens = dict.fromkeys(token for token in comment.split(" ") if token.startswith(MARK))
    return [_split_name(token[len(MARK) :]) for token in tokens]


def problem(images: list[tuple[str, str]]) -> str:
    """Return what is wrong with what `wanted` returned as a whole, or ""."""
    if len(images) > MAX_IMAGES:
        return f"the comment names {len(images)} images, {MAX_IMAGES} is the limit"
    names = [name for name, _ in images if name]
    for name in names:
        if len(name) > MAX_NAME:
            return f"the name {name[:20]}... has {len(name)} characters, {MAX_NAME} is the limit"
        if names.count(name) > 1:
            return f"the comment gives the name {name} to two images"
    return ""


def _split_name(text: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if equals and name and not name[0].isdigit() and _NAME_CHARACTERS.issuperset(name):
        return name, rest
    return "", text
