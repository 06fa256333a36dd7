"""Where everything is. Names only, no file is touched here.

Imports nothing: the way to a warm hit uses it.
"""


def owned(name: str, owner: int | None) -> str:
    """Return the name of what is private to a uid, and of what all share as it is."""
    return name if owner is None else f"u{owner}-{name}"


def fetching(key: str) -> str:
    """Return the name of the lock that who brings the content of a key holds all the while.

    The lock of the key itself is held for a moment: to publish, to lease or to evict.
    """
    return f"fetch-{key}"


class Layout:
    """The paths below the cache directory (on disk) and the state directory (tmpfs).

    A `key` names content: `sha256-<hex>` of the file, `layers-sha256-<hex>-<format>` of
    the config and the layers that it was made from, `blob-sha256-<hex>` of a layer; for
    what is private with `u<uid>-` before it. An `owner` is the uid of a private image's
    user, None for shared.
    """

    def __init__(self, cache: str, state: str) -> None:
        self.cache = cache
        self.state = state
        self.images = f"{cache}/images"
        self.blobs = f"{cache}/blobs"
        self.users = f"{cache}/users"
        self.metas = f"{cache}/meta"
        self.refs = f"{cache}/refs"
        self.pins = f"{cache}/pins"
        self.locks = f"{cache}/locks"
        self.tmp = f"{cache}/tmp"
        self.work = f"{cache}/work"
        self.trash = f"{cache}/trash"
        self.verified = f"{cache}/verified.json"
        self.jobs = f"{state}/jobs"
        self.leases = f"{state}/leases"
        self.inflight = f"{state}/inflight"
        self.hot = f"{state}/hot"
        self.failures = f"{state}/failures"
        self.leaders = f"{state}/leaders"
        self.state_tmp = f"{state}/tmp"
        self.socket = f"{state}/socket"
        self.turns = f"{state}/turns"
        self.events = f"{state}/events.jsonl"
        self.sizes = f"{state}/sizes.json"
        self.records = f"{state}/entries.json"

    def image(self, key: str, extension: str, owner: int | None) -> str:
        if owner is not None:
            directory = f"{self.users}/{owner}"
        else:
            directory = self.blobs if extension == "blob" else self.images
        return f"{directory}/{key}.{extension}"

    def meta(self, key: str) -> str:
        return f"{self.metas}/{key}.json"

    def ref(self, ref_id: str) -> str:
        return f"{self.refs}/{ref_id}.json"

    def pin(self, key: str) -> str:
        return f"{self.pins}/{key}.json"

    def lock(self, name: str) -> str:
        return f"{self.locks}/{name}.lock"

    def failure(self, ref_id: str) -> str:
        return f"{self.failures}/{ref_id}.json"

    def lease_directory(self, key: str) -> str:
        return f"{self.leases}/{key}"

    def lease(self, key: str, job: str) -> str:
        return f"{self.leases}/{key}/{job}"

    def job(self, job: str) -> str:
        return f"{self.jobs}/{job}"

    def hot_directory(self, owner: int | None) -> str:
        return f"{self.hot}/{'all' if owner is None else owner}"
