"""How many downloads at once are worth it. Pure.

Through a link that is full, more at once only arrive later, each of them, and what uses them waits.
Where a server limits each connection, more at once bring more.
"""

from __future__ import annotations

_FEWEST = 2
_LOOK_AFTER_S = 1.0
_WORTH = 1.2  # times the rate before, or one more was for nothing


class Pace:
    """Begins with one download, and tries one more each second as long as this brings more.

    After that there are at least two, so that something comes while the next one is asked for.
    `at_once` is how many there should be now, at most `most`; when `settled`, that stays. Times are
    in seconds.
    """

    def __init__(self, most: int, now: float) -> None:
        self.at_once = 1
        self.settled = self.at_once == most
        self._most = most
        self._since, self._bytes = now, 0
        self._rate = 0.0

    def look(self, now: float, position: int) -> None:
        """Decide again, `at_once` downloads having brought so many bytes together."""
        if self.settled or now - self._since < _LOOK_AFTER_S:
            return
        rate = (position - self._bytes) / (now - self._since)
        if rate < self._rate * _WORTH:
            self.at_once = max(self.at_once - 1, _FEWEST)
            self.settled = True
            return
        self._rate = rate
        self._since, self._bytes = now, position
        self.at_once += 1
        self.settled = self.at_once == self._most
