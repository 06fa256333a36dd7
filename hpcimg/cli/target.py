"""Arguments of `rm`, `pin`, `unpin` and `verify`: a reference, a key, or a digest from `ls`."""

from __future__ import annotations

import re

from hpcimg.cache import store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry
from hpcimg.config.keys import Config
from hpcimg.errors import BadReference, NotFound
from hpcimg.site import policy

HELP = "a reference, an alias, a key from `ls --json`, or a SHA256 from `ls`"
_KEY = re.compile(r"(u\d+-)?(blob-|layers-)?sha256-[0-9a-f]+(-[a-z]+)?")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


def find(config: Config, layout: Layout, text: str) -> Entry:
    """Return the one matching image, whether or not its file is complete.

    Raises NotFound, BadReference if several match, NotAllowed.
    """
    found = _found(config, layout, text)
    if not found:
        raise NotFound(f"{text} is not in the cache of this node", do="`hpcimg ls` shows what is.")
    if len(found) > 1:
        raise BadReference(
            f"{text} matches several images",
            why=", ".join(sorted(entry.key for entry in found)),
            do="Name one of these keys.",
        )
    return found[0]


def _found(config: Config, layout: Layout, text: str) -> list[Entry]:
    if _KEY.fullmatch(text):
        keys = [text]
    elif _DIGEST.fullmatch(text) and text not in config.aliases:
        return [
            entry
            for key in store.keys(layout)
            if (entry := store.load_record(layout, key)) and entry.sha256.startswith(text)
        ]
    else:
        wanted = policy.parse(config, text)
        refs = store.refs_of(layout, wanted.address)
        keys = list(dict.fromkeys(ref.key for ref in refs))
    return [entry for key in keys if (entry := store.load_record(layout, key))]
