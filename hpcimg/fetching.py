"""What the cache and a fetch say to each other.

The cache knows no source and a source knows no cache: `hpcimg.stage` hands the
cache a function of the type `Fetch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """A repository that an image can be read from: a mirror's, or that of its own registry.

    `name` is `HOST[:PORT]/REPOSITORY`; `insecure` and `credentials` are as in Settings.
    """

    name: str
    insecure: bool = False
    credentials: str = ""


class Settings(NamedTuple):
    """What the site says about one fetch. Times are in seconds.

    `deadline` is a time.monotonic() value, which all processes of a node share;
    `tries` is how often a request is made before it is given up; `insecure`
    that the host is spoken to in plain http; `service` is the address of the
    service that the site configured for a scheme whose references name no host.
    `credentials` is the text of the site's own credentials file for this place,
    "" for none. `as_user` says that the fetch runs with the rights of the job's
    user, and that this user's own credentials files may be read. `places` are
    where the image of a registry is looked for, in this order, its own registry
    last; () stands for that one alone.
    """

    tries: int
    deadline: float
    connect_timeout_s: float
    stall_timeout_s: float
    insecure: bool = False
    service: str = ""
    credentials: str = ""
    as_user: bool = False
    places: tuple[Place, ...] = ()

    def address(self, host: str) -> str:
        """Return how the host of a reference is spoken to."""
        return f"{'http' if self.insecure else 'https'}://{host}"


class Offer(NamedTuple):
    """What the source is about to send, said before the first byte of it.

    `validator` is opaque; the cache hands it back at the next look. `sha256` is
    the hexadecimal digest of the file, where the source knows it beforehand.
    """

    validator: str
    size_bytes: int | None = None
    sha256: str = ""


class Unchanged(NamedTuple):
    """The reference still stands for what the given validator was about."""


class Declined(NamedTuple):
    """The offer was not taken up."""


class Fetched(NamedTuple):
    """The file is in the descriptor: this many bytes, with this digest, as counted here."""

    size_bytes: int
    sha256: str


Outcome = Unchanged | Declined | Fetched


Offered = Callable[[Offer], bool]
Progress = Callable[[str, int, int | None], None]


class Fetch(Protocol):
    """Bring what a reference stands for into an empty file."""

    def __call__(
        self,
        descriptor: int,
        *,
        validator: str,
        offered: Offered,
        progress: Progress,
    ) -> Outcome:
        """Return what came of it.

        `validator` is "" or what an earlier Offer held and the cache still has:
        then one request is to settle whether it changed, and a server that does
        not answer is not waited for long. `offered` is called before the
        content, and again before another one where a transfer has to begin anew;
        where it returns False the content is left. `progress` takes a
        phase, the bytes so far and the total where it is known. Both may raise,
        which ends the fetch. Raises HpcimgError.
        """
