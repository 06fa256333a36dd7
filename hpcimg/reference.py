"""References: how users name an image, and what they mean.

Pure: no files, no network, no configuration except what is passed in.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from hpcimg import spelling
from hpcimg.errors import BadReference, printable
from hpcimg.schemes import SCHEMES, of

MAX_LENGTH = 1024
# Characters that would need quoting in a shell, in JSON or in a line of the task prolog are not
# allowed in an address; this makes all later quoting trivial.
ALLOWED = frozenset(string.ascii_letters + string.digits + "-._~:/?#[]@!&()*+,;=%")
# A bare name with one of these is meant as a file, not as a forgotten docker://.
ENDINGS = (".sif", ".simg", ".img", ".sqsh", ".sqfs", ".squashfs")
_PORTS = {"https": 443, "http": 80}
_LEFT_OUT = "..."


class Reference(NamedTuple):
    """An image as it was requested.

    `rest` is what follows `scheme://`, an absolute path for `file`.
    """

    scheme: str
    rest: str

    @property
    def address(self) -> str:
        """The canonical spelling, which identifies the reference; a query may hold a signature."""
        return f"{self.scheme}:{'//' if of(self.scheme).slashes else ''}{self.rest}"

    @property
    def uri(self) -> str:
        """The address for messages and records: without the values of a query."""
        return without_query(self.address) if of(self.scheme).query else self.address

    @property
    def pinned(self) -> bool:
        """Whether the reference contains a digest, and so always means the same content."""
        return of(self.scheme).in_registry and "@sha256:" in self.rest

    @property
    def mounted_file(self) -> str:
        """The file that changes when a mounted image does; "" if the image is not mounted."""
        if self.scheme == "file":
            return self.rest
        if not of(self.scheme).mounted:
            return ""
        path = self.rest.partition(":")[0]
        return f"{path}/index.json" if self.scheme == "oci" else path

    @property
    def host(self) -> str:
        """The host, with its port if there is one; "" for paths."""
        return self.rest.partition("/")[0]

    def readings(self) -> list[str]:
        """Return the address, and every form that a server may treat it as."""
        if not of(self.scheme).query:
            return [self.address]
        path, mark, query = self.rest[len(self.host) :].partition("?")
        before = f"{self.scheme}://{self.host}"
        return [f"{before}{read}{mark}{query}" for read in spelling.readings(path)]


def parse(
    text: str, aliases: Mapping[str, str] | None = None, schemes: Collection[str] = ()
) -> Reference:
    """Read a reference: a URI, an absolute path, or an alias of the site.

    `aliases` maps a name to a URI, or `PREFIX/*` to `URI/*`. Exact names take precedence, then the
    longest prefix. `schemes` are the site's own. Raises BadReference, with the closest valid
    spelling if there is one.
    """
    _check_characters(text)
    expanded = _expand(text, aliases or {})
    if expanded is None:
        return _parse_uri(text, schemes)
    _check_characters(expanded)
    return _parse_uri(expanded, schemes)


def without_query(text: str) -> str:
    """Return a text with the names in a query, but not their values."""
    path, mark, query = text.partition("?")
    if not mark:
        return text
    parts = (part.partition("=") for part in query.split("&"))
    return f"{path}?" + "&".join(f"{name}={_LEFT_OUT}" if equals else _LEFT_OUT
                                 for name, equals, _ in parts)  # fmt: skip


def told(text: str) -> str:
    """Return what a user wrote, truncated and without secrets, as others may see it."""
    cut = text[:MAX_LENGTH]
    path, mark, query = cut.partition("?")
    scheme, slashes, rest = path.partition("//")
    if not slashes:
        scheme, rest = "", path
    shown = without_query(f"{scheme}{slashes}{_without_password(rest)}{mark}{query}")
    # Truncation may remove the @ that marks what is before it as a password.
    if len(text) > MAX_LENGTH and ":" in rest and "@" in text:
        return f"{scheme}{slashes}{_LEFT_OUT}"
    return shown


def _without_password(rest: str) -> str:
    end = rest.rfind("@")
    while end >= 0 and rest.startswith("@sha256:", end):
        end = rest.rfind("@", 0, end)
    return f"{_LEFT_OUT}{rest[end:]}" if ":" in rest[: max(end, 0)] else rest


def _check_characters(text: str) -> None:
    if not text:
        raise BadReference(
            "container: is followed by nothing", do="Write container:URI without a space."
        )
    if len(text) > MAX_LENGTH:
        raise BadReference(
            f"a reference of {len(text)} characters is too long",
            why=f"{MAX_LENGTH} is the limit; it begins {told(text)[:60]!r}",
        )
    wrong = sorted(set(text) - ALLOWED)
    if wrong:
        shown = " ".join(printable(c) for c in wrong[:8])
        raise BadReference(
            f"'{printable(told(text)[:200])}' is not a reference to an image",
            why=f"it contains characters that no address has: {shown}",
            do="Variables are not expanded in a comment; write them out." if "$" in wrong else "",
        )


def _expand(text: str, aliases: Mapping[str, str]) -> str | None:
    if text in aliases and not text.endswith("/*"):
        return aliases[text]
    prefixes = [name[:-1] for name in aliases if name.endswith("/*") and text.startswith(name[:-1])]
    if not prefixes:
        return None
    longest = max(prefixes, key=len)
    return aliases[longest + "*"].removesuffix("*") + text[len(longest) :]


def _parse_uri(text: str, more: Collection[str]) -> Reference:
    if text.startswith("/"):
        return _path(text, "file", text)
    scheme, colon, rest = text.partition(":")
    lowered = scheme.lower()
    if "=" in scheme:
        name, _, named = text.partition("=")
        right = "".join(c if c.isalnum() else "_" for c in name)
        right = f"_{right}" if right[:1].isdigit() else right
        raise _bad(text, f"{name!r} cannot be a name", f"{right}={named}" if right else "")
    known = colon and (lowered in SCHEMES or lowered in more)
    has_slashes = colon and rest.startswith("//")
    if known and not of(lowered).slashes:
        if has_slashes:
            raise _bad(text, "this scheme takes no //", f"{lowered}:/{rest.lstrip('/')}")
        return _path(text, lowered, rest)
    if not has_slashes:
        raise _not_a_uri(text, lowered if colon else "", rest)
    if not known:
        names = [name for name, scheme in SCHEMES.items() if scheme.slashes]
        import difflib  # only for what is written wrong

        near = difflib.get_close_matches(lowered, names, n=1)
        raise _bad(
            text,
            f"{told(scheme)}:// is not known",
            f"{near[0]}:{rest}" if near else "",
            do=f"Known: {', '.join(f'{name}://' for name in names)}.",
        )
    if lowered == "file":
        return _path(text, lowered, rest[2:])
    return _address(text, lowered, rest[2:])


def _path(text: str, scheme: str, rest: str) -> Reference:
    """Read a path, and for an image in layers the name that may follow it."""
    path, colon, name = rest, "", ""
    if scheme != "file":
        path, colon, name = rest.partition(":")
    if not path.startswith("/"):
        begin = "file://" if scheme == "file" else f"{scheme}:"
        raise _bad(text, "the path is not absolute", f"{begin}/{rest.lstrip('./')}")
    if any(part in (".", "..") for part in path.split("/")):
        raise _not_plain(text, "plain path")
    plain = "/".join(["", *filter(None, path.split("/"))])
    if plain == "" or (scheme == "file" and path.endswith("/")):
        raise BadReference(f"{told(text)!r} names a directory", do="Name the image file in it.")
    return Reference(scheme, f"{plain}{colon if name else ''}{name}")


def _not_plain(text: str, what: str) -> BadReference:
    return BadReference(
        f"{told(text)!r} is not a {what}", why="it has . or .. in it", do="Write the path out."
    )


def _address(text: str, scheme: str, rest: str) -> Reference:
    row = of(scheme)
    if _has_userinfo(row.in_registry, rest):
        # Everybody can read comments: a password in one has been published.
        raise BadReference(
            f"a {scheme}:// address with user:password@ in it is refused",
            why="comments are public, and so is a password in one",
            do="Leave the credentials out; change the password, since others may have read it.",
        )
    if row.query:
        rest = rest.partition("#")[0]
    path, mark, query = rest.partition("?")
    host, _, after = path.partition("/")
    if not host or (scheme in _PORTS and not after):
        raise _no_image(text, row.in_registry)
    if spelling.has_dots(spelling.web_path(path)):
        raise _not_plain(text, "plain address")
    try:
        if row.in_registry:
            return Reference(scheme, spelling.image_name(rest, hub=scheme == "docker"))
        if scheme in _PORTS:
            host = spelling.host(host, port=_PORTS[scheme])
            after = spelling.web_path(after)
            return Reference(scheme, f"{host}/{after}{mark}{query}")
        if row.parts and rest.count("/") == row.parts:
            return Reference(scheme, f"{spelling.host(host, port=443)}/{after}")
    except ValueError as error:
        raise BadReference(
            f"{told(text)!r} is not a reference to an image", why=str(error)
        ) from None
    return Reference(scheme, rest)


def _no_image(text: str, in_registry: bool) -> BadReference:
    meant = text.partition("//")[2].lstrip("/") if in_registry else ""
    hint = f"; did you mean {told(text.partition('//')[0])}//{told(meant)}" if meant else ""
    return BadReference(
        f"{told(text)!r} names no image", why=f"something is missing after the //{hint}"
    )


def _has_userinfo(in_registry: bool, rest: str) -> bool:
    host, slash, _ = rest.partition("/")
    if not in_registry:
        return "@" in host
    named, _, _ = host.partition("@sha256:")  # docker://ubuntu@sha256:...
    before, at, after = named.rpartition("@")
    # enroot's docker://USER@REGISTRY#IMAGE contains a user and no password; so does what is left of
    # it when sbatch cut the line at the #.
    is_enroots = "#" in after or not slash
    return bool(at) and not (is_enroots and not {":", "@"} & set(before))


def _not_a_uri(text: str, scheme: str, rest: str) -> BadReference:
    relative = not scheme and text.lower().endswith(ENDINGS)
    if relative or text.startswith(("./", "../", "~")):
        return BadReference(
            f"{told(text)!r} is a relative path",
            why="each node would look for it in another directory",
            do="Write the absolute path.",
        )
    if scheme in SCHEMES:
        slashes = ":///" if scheme == "file" else "://"
        return _bad(text, "the // is missing", f"{scheme}{slashes}{rest.lstrip('/')}")
    return _bad(text, "it has no scheme and is no alias of this site", f"docker://{text}")


def _bad(text: str, why: str, meant: str = "", *, do: str = "") -> BadReference:
    hint = f"; did you mean {told(meant)}" if meant else ""
    return BadReference(f"{told(text)!r} is not a reference to an image", why=why + hint, do=do)


def matches_any(uri: str, patterns: Iterable[str]) -> bool:
    """Tell whether a canonical URI matches one of the shell-style patterns."""
    return any(fnmatchcase(uri, pattern) for pattern in patterns)
