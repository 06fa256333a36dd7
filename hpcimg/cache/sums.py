"""Sums of events: counters that outlive the individual events.

Pure: events go in, sums come out. The number of labels does not grow with users or images.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hpcimg.fetch.contract import ORIGIN

RESULTS = ("hit", "waited", "fetched", "unchanged", "stale")  # of a request that got its image
FAILED = "failed"
# Upper bounds in seconds for the histogram of how long a job waited for its image.
BUCKETS_S = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_VERSION = 2


class Sums:
    """Sums by family and label, which only grow. `last` has the Unix time of each event's last.

    | family          | label                  | value                                       |
    |-----------------|------------------------|---------------------------------------------|
    | `events`        | event                  | number                                      |
    | `timed`         | result                 | number of those with a duration             |
    | `seconds`       | result                 | their total duration                        |
    | `buckets`       | result, bound          | number up to this bound                     |
    | `failures`      | class, error           | number                                      |
    | `served_bytes`  | result                 | sizes of the images that jobs got           |
    | `fetched_bytes` | scheme                 | sizes of the images that were fetched       |
    | `fetched_via`   | via                    | sizes of the images that were fetched       |
    | `evictions`     | reason                 | number                                      |
    | `evicted_bytes` | reason                 | sizes of what was evicted                   |

    A label with two parts has a blank between them.
    """

    def __init__(self) -> None:
        self._families: dict[str, collections.Counter[str]] = {}
        self.last: dict[str, float] = {}

    def family(self, name: str) -> dict[str, float]:
        """Return the sums of one family, by label."""
        return dict(self._families.get(name, {}))

    def total(self, name: str) -> float:
        """Return the sum of one family."""
        return sum(self._families.get(name, {}).values())

    def add_all(self, events: Iterable[Mapping[str, Any]]) -> Sums:
        """Count events; return these sums."""
        for event in events:
            self.add(event)
        return self

    def add(self, event: Mapping[str, Any]) -> None:
        """Count one event, with its fields."""
        name = str(event["event"])
        self._add("events", name)
        self.last[name] = max(self.last.get(name, 0.0), _number(event.get("time")))
        size = _number(event.get("bytes"))
        if name in (*RESULTS, FAILED) and "took_s" in event:
            self._add_time(name, _number(event["took_s"]))
        if name == FAILED:
            self._add("failures", f"{_word(event, 'class')} {_word(event, 'error')}")
        elif name == "fetched":
            self._add("fetched_bytes", _word(event, "scheme"), size)
            self._add("fetched_via", str(event.get("via") or ORIGIN), size)
            self._add("served_bytes", name, size)
        elif name in RESULTS and event.get("job"):
            self._add("served_bytes", name, size)
        elif name == "evict":
            self._add("evictions", _word(event, "reason"))
            self._add("evicted_bytes", _word(event, "reason"), size)

    def _add_time(self, result: str, took_s: float) -> None:
        self._add("timed", result)
        self._add("seconds", result, took_s)
        bound = next((bound for bound in BUCKETS_S if took_s <= bound), None)
        if bound is not None:
            self._add("buckets", f"{result} {bound}")

    def _add(self, family: str, label: str, number: float = 1) -> None:
        self._families.setdefault(family, collections.Counter())[label] += number  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for `from_dict`."""
        families = {name: dict(counter) for name, counter in self._families.items()}
        return {"version": _VERSION, "sums": families, "last": self.last}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Sums:
        """Restore sums. Raises ValueError for invalid fields."""
        made = cls()
        try:
            if fields["version"] != _VERSION:
                raise ValueError("of another release")
            for name, family in fields["sums"].items():
                for label, number in family.items():
                    made._add(name, label, number + 0)
            made.last = {name: float(time) for name, time in fields["last"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None
        return made


def _number(value: object) -> float:
    """Return a number, or 0 for anything else: an odd event must not break the sums."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return max(value, 0)
    return 0


def _word(event: Mapping[str, Any], name: str) -> str:
    return str(event.get(name) or "other")
