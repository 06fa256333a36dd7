"""What a site may have put between a node and the origin of an image: a tier, other nodes.

Each is a `hpcimg.fetch.contract.Way` in front of another one. The nearest to the node is
asked first, and what it does not have it gets from the way behind it, the origin at last.
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
    """A `hpcimg.fetch.contract.Way` that goes the way behind it for all that it does not do.

    Its own failures fail nobody: it logs them, and goes on to what is behind it.
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
        """Hear how far this node is, of a conversion and of what a `Reporting` listens to."""

    def decides(self) -> bool:
        """Tell whether `fetch` finds out what the job's nodes run, also where this node has one."""
        return False

    def agreed(self) -> str:
        """Return the key of the image that the job's nodes run, as in a Request; "" if open."""
        return ""

    def finish(self, staged: Staged) -> None:
        """Hear that the image is on this node. Not called where it could not be had."""

    def settle(self, staged: Staged) -> str:
        """Return what `agreed` is from now on, by proposing the image that is on this node.

        Called after `finish`, for a job of several nodes that have not agreed yet.
        """
        return ""


class Reporting:
    """A `hpcimg.fetch.contract.Listener` that also lets a front hear how far a fetch is."""

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
    """Nodes of one job, which all begin at the same moment, do not ask a server all at once."""

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        time.sleep(random.uniform(0, SPREAD_S))
        return super().fetch(descriptor, listener, validator=validator)


class Asked:
    """What is asked for, as who opens a front has to know it."""

    def __init__(self, config: Config, cache: Cache, request: Request, origin: Origin) -> None:
        self.config = config
        self.cache = cache
        self.request = request
        self.origin = origin


# Gives a front before the way behind it; None where it has nothing to do with what is asked.
Opener = Callable[[Asked, Way], "AbstractContextManager[Front] | None"]


def spread(asked: Asked, behind: Way) -> AbstractContextManager[Front] | None:
    """Return what spreads the nodes of a job that have nothing else in front of the origin."""
    if not asked.request.together or schemes.of(asked.request.reference.scheme).mounted:
        return None
    return nullcontext(Spread(behind))


@contextmanager
def in_front_of(asked: Asked, openers: Sequence[Opener]) -> Iterator[tuple[Way, Sequence[Front]]]:
    """Give the way to go, and the fronts on it, the nearest to the node first.

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
