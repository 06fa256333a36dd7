"""Letting go what the site tier holds too much of, on one host for all."""

from __future__ import annotations

import time

from hpcimg.config.keys import Config
from hpcimg.errors import ConfigError, Unreachable
from hpcimg.tier import evict
from hpcimg.tier.client import start
from hpcimg.tier.evict import Image
from hpcimg.tier.keeper import Asker
from hpcimg.tier.places import Trouble

_TIME_S = 3600.0


def tidy(config: Config, *, dry_run: bool) -> evict.Report:
    """Remove what is too old or too much. Raises ConfigError, Unreachable."""
    if not config.site_path:
        raise ConfigError("there is no site tier", do="Set [site] path in hpcimg.conf.")
    try:
        child = start(config, "", "", Asker("", ""))
        try:
            found = child.ask(
                do="trim", dry_run=dry_run, when_due=False,
                patience_s=_TIME_S, until=time.monotonic() + _TIME_S,
            )  # fmt: skip
        finally:
            child.end()
    except Trouble as trouble:
        raise Unreachable("the site tier cannot be tidied", why=str(trouble)) from None
    images = tuple(Image(*image) for image in found["images"])
    return evict.Report(images, found["others"], found["held_bytes"], found["busy"])
