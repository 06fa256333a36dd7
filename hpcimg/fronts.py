"""Ways to an image in front of its origin: the site tier, the other nodes of a job.

Each is a `hpcimg.fetch.contract.Way` in front of another one. The one nearest to the node is
asked first. What it does not have, it gets from the way behind it; the last one is the origin.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from hpcimg import schemes
from hpcimg.cache.ensure import Staged
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.fetch.contract import (
    Conversion,
    Converting,
    Fetched,
    Files,
    Listener,
    Offer,
    Outcome,
    Request,
    Way,
    Whole,
)
from hpcimg.origin import Origin

SPREAD_S = 1.0


class Front:
    """A `hpcimg.fetch.contract.Way` that leaves what it does not do to the way behind it.

    It logs its own failures and uses the way behind: no job fails because of them.
    """

    def __init__(self, behind: Way) -> None:
        self.behind = behind

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        return self.behind.fetch(descriptor, listener, validator=validator)

    def convert(
        self, descriptor: int, *, image_config: str, sizes: Sequence[int], progress: Converting
    ) -> AbstractContextManager[Conversion]:
        def told(done: int, total: int | None, beside: int) -> None:
            self.advance("converting", done)
            progress(done, total, beside)

        return self.behind.convert(
            descriptor, image_config=image_config, sizes=sizes, progress=told
        )

    def verify(self, descriptor: int, *, source: str) -> None:
        self.behind.verify(descriptor, source=source)

    def advance(self, phase: str, done: int) -> None:
        """Note the progress of this node: of a conversion, or of a fetch with a `Reporting`."""

    def decides(self) -> bool:
        """Tell whether `fetch` finds out what the job's nodes run, also where this node has one."""
        return False

    def agreed(self) -> str:
        """Return the key of the image that the job's nodes agreed on, as in a Request, or ""."""
        return ""

    def finish(self, staged: Staged) -> None:
        """Note that the image is on this node. Not called if staging failed."""

    def settle(self, staged: Staged) -> str:
        """Propose the image on this node to the job's nodes; return what `agreed` is afterwards.

        Called after `finish`, for a job of several nodes that have not agreed yet.
        """
        return ""


class Reporting:
    """A `hpcimg.fetch.contract.Listener` that also reports the progress of a fetch to a front."""

    def __init__(self, listener: Listener, front: Front) -> None:
        self._listener = listener
        self._front = front

    def offered(self, offer: Offer | Whole) -> Files | None:
        return self._listener.offered(offer)

    def arrived(self, number: int, fetched: Fetched) -> None:
        self._listener.arrived(number, fetched)

    def progress(self, phase: str, done: int, total: int | None) -> None:
        self._front.advance(phase, done)
        self._listener.progress(phase, done, total)


class Spread(Front):
    """Delays the nodes of one job at random, since they would all contact a server at once."""

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        time.sleep(random.uniform(0, SPREAD_S))
        return super().fetch(descriptor, listener, validator=validator)


class Asked:
    """A request, with all that an Opener needs to know about it."""

    def __init__(self, config: Config, cache: Cache, request: Request, origin: Origin) -> None:
        self.config = config
        self.cache = cache
        self.request = request
        self.origin = origin


# Returns a front for the way behind it, None if it has no use for the request.
Opener = Callable[[Asked, Way], "AbstractContextManager[Front] | None"]


def spread(asked: Asked, behind: Way) -> AbstractContextManager[Front] | None:
    """Return a Spread for a job of several nodes, None for a mounted file."""
    if not asked.request.together or schemes.of(asked.request.reference.scheme).mounted:
        return None
    return nullcontext(Spread(behind))


@contextmanager
def in_front_of(asked: Asked, openers: Sequence[Opener]) -> Iterator[tuple[Way, Sequence[Front]]]:
    """Yield the way to use and its fronts, the nearest to the node first.

    `openers` are in the order from the origin to the node.
    """
    way: Way = asked.origin
    fronts: list[Front] = []
    with ExitStack() as stack:
        for opener in openers:
            if opened := opener(asked, way):
                way = front = stack.enter_context(opened)
                fronts.insert(0, front)
        yield way, fronts
