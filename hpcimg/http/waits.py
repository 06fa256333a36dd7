"""How long a server asks to be left alone: all forms of Retry-After. Pure."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC

_NUMBER = re.compile(r"(-?)([0-9]{1,30}(?:\.[0-9]{0,9})?)")
# Larger numbers are not delays but times: seconds since 1970, beyond the second milliseconds.
_IS_TIME = 1e9
_IS_MILLISECONDS = 1e11
_LONGEST_S = 10 * 365 * 86400.0


def retry_after_s(text: str, *, now: float) -> float | None:
    """Return the seconds to wait from `now`, in seconds since 1970; None if it does not say.

    RFC 9110 (section 10.2.3) allows whole seconds and dates. Registries also send fractions, and
    the time at which their limit ends.
    """
    text = text.strip()
    # A header sent twice arrives as a list; a date contains a comma, too.
    if match := _NUMBER.fullmatch(text.partition(",")[0].strip()):
        seconds = float(match[2])
        if match[1]:
            return 0.0
        if seconds >= _IS_MILLISECONDS:
            seconds /= 1000
        if seconds >= _IS_TIME:
            seconds -= now
        return min(max(0.0, seconds), _LONGEST_S)
    try:
        when = email.utils.parsedate_to_datetime(text)
        # Without a zone, or with -0000, it is also in UTC.
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return min(max(0.0, when.timestamp() - now), _LONGEST_S)
    except (ValueError, OverflowError):
        return None
