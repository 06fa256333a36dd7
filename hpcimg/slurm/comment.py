"""The job's comment, and what `--extra` has: which images they ask for.

A word that begins with `container:` asks for one. Spellings that can mean
nothing else are taken as well: `Container:`, `container=`, a blank after the
colon, quotes and brackets around, a comma before, a JSON object with that key.
What names an image in a container's scheme without it, or spells it otherwise
(`containers:URI`), asks for nothing and is told so. `hpcimg:links=NAME,NAME`
asks for links under the names that workflow managers look for. All else in a comment is
not ours. `etc/hpcimg.lua` reads the same; one table of cases is for both.

Imports nothing, but json for a comment that is an object with such a key: the
way to a warm hit reads comments with it.
"""

# Of the job, as Slurm passes them to Prolog: --comment, and --extra since 23.02.
VARIABLES = ("SLURM_JOB_COMMENT", "SLURM_JOB_EXTRA")
MARK = "container:"
MAX_IMAGES = 32
MAX_NAME = 64
LINKS = "hpcimg:links="
MANAGERS = ("cwltool", "miniwdl", "nextflow", "snakemake")  # those of hpcimg.managers
_KEY, _OURS = "container", "hpcimg"
# Schemes of container images and of nothing else.
IMAGE_SCHEMES = ("docker://", "oras://", "library://", "shub://")
ENDINGS = (".sif", ".simg", ".img", ".sqsh", ".sqfs", ".squashfs")
_SEPARATORS = ";\t\n\r\v\f"
_QUOTES = "\"'`\\\u201c\u201d\u2018\u2019"  # those of word processors, too
_OPEN, _CLOSE = "([{<", ")]}>"
_BEFORE = ",|&"
_NESTED_MAX = 64
_UPPER, _LOWER, _DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789"
_ALNUM = frozenset(_UPPER + _LOWER + _DIGITS)
_NAME = _ALNUM | {"_"}
_TO_LOWER = str.maketrans(_UPPER, _LOWER)  # str.lower() knows letters that Lua does not


class Wanted:
    """What a job asks for.

    `images` are (name, reference), the name "" where none was given; what is
    malformed in them comes back as it is. `links` are workflow managers. `problem` says
    what is wrong with all of it, "" for nothing, and `remedy` what to do, where that is special.
    `missed` is the first word that is meant for us and asks for nothing, and what would follow
    the mark in it; ("", "") for none.
    """

    __slots__ = ("images", "links", "missed", "problem", "remedy")

    def __init__(self) -> None:
        self.images: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.problem = ""
        self.remedy = ""
        self.missed = ("", "")


def read(*texts: str) -> Wanted:
    """Return what a comment, and what other texts of the job, ask for, in order.

    An image that is asked for twice counts once.
    """
    wanted = Wanted()
    for text in texts:
        # A comment without a reference in it is not ours, and costs no more than this.
        lower = text.translate(_TO_LOWER)
        is_ours = "/" in text or _KEY in lower or _OURS in lower
        if is_ours and not _read_object(text, wanted):
            _read_words(text, wanted)
    wanted.images = list(dict.fromkeys(wanted.images))
    wanted.links = list(dict.fromkeys(wanted.links))
    wanted.problem = wanted.problem or _problem(wanted.images)
    return wanted


def _problem(images: list[tuple[str, str]]) -> str:
    if len(images) > MAX_IMAGES:
        return f"the job names {len(images)} images, {MAX_IMAGES} is the limit"
    names = [name for name, _ in images if name]
    for name in names:
        if len(name) > MAX_NAME:
            return f"the name {name[:20]}... has {len(name)} characters, {MAX_NAME} is the limit"
        if names.count(name) > 1:
            return f"the job gives the name {name} to two images"
    return ""


# Words


def _words(text: str) -> list[str]:
    for separator in _SEPARATORS:
        text = text.replace(separator, " ")
    return [word for word in text.split(" ") if word]


def _read_words(text: str, wanted: Wanted) -> None:
    pieces = [*(piece for word in _words(text) for piece in _cut(word)), "", ""]
    number = 0
    while pieces[number]:
        piece, following = pieces[number], pieces[number + 1]
        number += 1
        is_ours = piece.startswith(MARK)
        bare = piece.strip(_QUOTES).translate(_TO_LOWER)
        if bare == _KEY and following[:1] in (":", "="):  # container : URI
            piece, following = piece + following, pieces[number + 1]
            number += 1
            asked = _after_mark(piece)
            if asked and not _is_image(asked):
                continue
        else:
            asked = _after_mark(piece)
        if asked is None:
            if not _read_links(piece, wanted):
                _look_at_other(piece, wanted)
        elif asked == "":
            asked = _unquoted(following)
            if _after_mark(following) is None and _is_image(asked):
                wanted.images.append(split_name(asked))
                number += 1
            elif is_ours:
                wanted.images.append(("", ""))
        elif _says_something(asked):
            wanted.images.append(split_name(asked))


def _read_links(piece: str, wanted: Wanted) -> bool:
    """Read a word that asks for links; return False where it is none."""
    body = _unquoted(piece)
    key, _, listed = body.translate(_TO_LOWER).partition("=")
    if not key.startswith(f"{_OURS}:link"):
        return False
    names = [name for name in listed.split(",") if name]
    unknown = next((name for name in names if name not in MANAGERS), "")
    if f"{key}=" != LINKS or not names or unknown:
        why = f"no workflow manager {unknown[:40]} is known" if unknown else "it asks for no links"
        wanted.problem = wanted.problem or f"{body[:60]}: {why}"
        wanted.remedy = f"Write {LINKS} and, with commas, some of {' '.join(MANAGERS)}."
    wanted.links += names
    return True


def _cut(word: str) -> list[str]:
    """Cut a word where a comma, | or & is before the mark: `a=1,container:URI`."""
    lower = word.translate(_TO_LOWER)
    pieces, begin, at = [], 0, lower.find(_KEY)
    while at >= 0:
        end = at + len(_KEY)
        start = at
        while start > begin and word[start - 1] in _QUOTES + _OPEN:
            start -= 1
        if start > begin and word[start - 1] in _BEFORE and _colon(word, end):
            pieces.append(word[begin : start - 1])
            begin = start
        at = lower.find(_KEY, end)
    return [piece for piece in (*pieces, word[begin:]) if piece]


def _colon(word: str, at: int) -> int:
    """Return the place behind the `:` or `=` at `at`, which quotes may precede, 0 for none."""
    while at < len(word) and word[at] in _QUOTES:
        at += 1
    return at + 1 if word[at : at + 1] in (":", "=") else 0


def _after_mark(piece: str) -> str | None:
    """Return what follows the mark, None where the piece does not begin with one."""
    body = piece.lstrip(_QUOTES + _OPEN)
    if body[: len(_KEY)].translate(_TO_LOWER) != _KEY:
        return None
    colon = _colon(body, len(_KEY))
    return _unquoted(body[colon:]) if colon else None


def _unquoted(text: str) -> str:
    """Return a text without quotes and brackets around it."""
    text = text.lstrip(_QUOTES + _OPEN)
    extra = {bracket: text.count(bracket) for bracket in _CLOSE}
    for bracket, opening in zip(_CLOSE, _OPEN, strict=True):
        extra[bracket] -= text.count(opening)
    end = len(text)
    while end and (text[end - 1] in _QUOTES + "," or extra.get(text[end - 1], 0) > 0):
        end -= 1
        if text[end] in extra:
            extra[text[end]] -= 1
    return text[:end]


def split_name(text: str) -> tuple[str, str]:
    """Return name and reference of what follows the mark."""
    name, equals, rest = text.partition("=")
    if equals and name and name[0] not in _DIGITS and _NAME.issuperset(name):
        return name, _unquoted(rest)
    return "", text


def _says_something(text: str) -> bool:
    return any(c in _ALNUM or c in "/$~=" or c > "\x7f" for c in text)


def _is_image(text: str) -> bool:
    """Tell whether this can be nothing but a reference: a URI, a path, a file, NAME:TAG."""
    text = split_name(text)[1]
    head, colon, rest = text.partition(":")
    if text.startswith("/"):
        return any(c in _ALNUM for c in text)
    if colon and head and _is_scheme(head) and rest.startswith("/"):
        return True
    if text.translate(_TO_LOWER).endswith(ENDINGS):
        return True
    tagged = rest[:1] in _ALNUM and head[:1] in _ALNUM and head[:1] not in _DIGITS
    return bool(colon) and tagged


def _is_scheme(text: str) -> bool:
    return text[0] not in _DIGITS and all(c in _ALNUM or c in "+.-" for c in text)


# What is nearly ours


def _look_at_other(piece: str, wanted: Wanted) -> None:
    right = "" if wanted.missed[0] else _nearly(piece)
    if right:
        wanted.missed = (_unquoted(piece), right)


def _nearly(piece: str) -> str:
    """Return the reference in a word that is meant for us and asks for nothing, "" for none."""
    lower = piece.translate(_TO_LOWER)
    at = min((at for scheme in IMAGE_SCHEMES if (at := lower.find(scheme)) >= 0), default=-1)
    if at >= 0 and "://" not in piece[:at]:
        before = piece[:at].strip(_QUOTES + _OPEN)
        # Whatever is between the key and the scheme: container>docker://x, container/docker://x
        if not before or before[-1] in ":=,|&" or before.translate(_TO_LOWER).startswith(_KEY):
            uri = _unquoted(piece[at:])
            name = before[:-1]
            is_name = before.endswith("=") and split_name(f"{name}={uri}")[0]
            return f"{name}={uri}" if is_name and not _is_key(name) else uri
    key, after = _key_and_value(piece)
    if _is_like_key(key) and _is_image(after):
        return after
    inner = lower.find(MARK)
    if inner > 0 and lower[inner - 1] in ":=" and _is_image(_unquoted(piece[inner + len(MARK) :])):
        return _unquoted(piece[inner + len(MARK) :])
    return ""


def _is_like_key(word: str) -> bool:
    """Tell whether a word begins with the key, or has one letter wrong or two in a wrong place."""
    # contained is a word of its own.
    if word.startswith(_KEY) or len(word) > len(_KEY) + 1 or not word.endswith(("r", "s")):
        return word.startswith(_KEY)
    missing, more = list(_KEY), 0
    for letter in word:
        if letter in missing:
            missing.remove(letter)
        else:
            more += 1
    return len(missing) <= 1 and more <= 1


def _key_and_value(piece: str) -> tuple[str, str]:
    """Return the key in lower case, and the value, of `KEY:VALUE` or `--KEY=VALUE`."""
    body = piece.lstrip(f"{_QUOTES}{_OPEN}-")
    end = 0
    while end < len(body) and (body[end] in _NAME or body[end] == "-"):
        end += 1
    colon = _colon(body, end)
    return body[:end].translate(_TO_LOWER) if colon else "", _unquoted(body[colon:])


def _is_key(name: str) -> bool:
    name = name.translate(_TO_LOWER)
    return name in ("image", "images", "img", "comment", "uri", "url") or _KEY in name


# JSON


def _read_object(text: str, wanted: Wanted) -> bool:
    """Read a comment that is a JSON object; return False where it is none."""
    if not text.lstrip(" \t\r\n").startswith("{"):
        return False
    if text.count("{") + text.count("[") > _NESTED_MAX:
        return False
    if _KEY not in text.translate(_TO_LOWER):  # json takes 8 ms to load
        return False
    import json

    def refuse(_: str) -> None:
        raise ValueError

    try:
        pairs = json.loads(text, object_pairs_hook=tuple, parse_int=float, parse_constant=refuse)
    except ValueError:
        return False
    for key, value in pairs:
        if key.translate(_TO_LOWER) == _KEY:
            _read_value(value, wanted)
        elif isinstance(value, str):
            if _is_like_key(key.translate(_TO_LOWER)):
                _look_at_other(f"{key}:{value}", wanted)
            else:
                _read_words(value, wanted)
    return True


def _read_value(value: object, wanted: Wanted) -> None:
    pairs = value if isinstance(value, tuple) else [("", each) for each in _listed(value)]
    for name, text in pairs:
        if not isinstance(text, str):
            wanted.problem = (
                "the value of container in the JSON object is neither text, nor a list or an "
                "object of texts"
            )
        elif name:
            wanted.images.append(split_name(f"{name}={_without_mark(text)}"))
        else:
            wanted.images += [split_name(_without_mark(word)) for word in _words(text) or [""]]


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _without_mark(text: str) -> str:
    return text.strip(" ").removeprefix(MARK)
