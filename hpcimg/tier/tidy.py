"""The site tier for operators: check it, evict from it."""

from __future__ import annotations

import time
from typing import Any

from hpcimg.config.keys import Config
from hpcimg.errors import ConfigError, Unreachable
from hpcimg.tier import evict
from hpcimg.tier.client import start
from hpcimg.tier.evict import Image
from hpcimg.tier.keeper import Asker
from hpcimg.tier.places import Trouble

_TIME_S = 3600.0


def tidy(config: Config, *, dry_run: bool) -> evict.Report:
    """Evict what is too old or beyond the size limit. Raises ConfigError, Unreachable."""
    if not config.site_path:
        raise ConfigError("there is no site tier", do="Set [site] path in hpcimg.conf.")
    try:
        found = _ask(config, _TIME_S, do="trim", dry_run=dry_run, when_due=False)
    except Trouble as trouble:
        raise Unreachable("the site tier cannot be cleaned up", why=str(trouble)) from None
    images = tuple(Image(*image) for image in found["images"])
    return evict.Report(images, found["others"], found["held_bytes"], found["busy"])


def check(config: Config) -> str:
    """Return why this node cannot use the site tier, "" if it can."""
    try:
        _ask(config, config.connect_timeout_s, do="check")
    except Trouble as trouble:
        return str(trouble)
    return ""


def _ask(config: Config, time_s: float, **question: Any) -> dict[str, Any]:
    child = start(config, "", "", Asker("", ""))
    try:
        return child.ask(patience_s=time_s, until=time.monotonic() + time_s, **question)
    finally:
        child.end()
