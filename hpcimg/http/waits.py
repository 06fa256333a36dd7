"""How long a server wants to be left alone: Retry-After in all the forms that it comes in. Pure."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC

_NUMBER = re.compile(r"(-?)([0-9]{1,30}(?:\.[0-9]{0,9})?)")
# A number above is no delay but a time: seconds since 1970, above the second milliseconds.
_IS_TIME = 1e9
_IS_MILLISECONDS = 1e11
_LONGEST_S = 10 * 365 * 86400.0


def retry_after_s(text: str, *, now: float) -> float | None:
    """Return the seconds to wait from `now`, seconds since 1970; None where it does not say.

    RFC 9110 (section 10.2.3) has whole seconds and dates. Registries also send fractions, and
    the time at which their limit ends.
    """
    text = text.strip()
    # Sent twice, it comes as a list; a date has a comma, too.
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
        # Without a zone, or with -0000, it is in UTC as well.
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return min(max(0.0, when.timestamp() - now), _LONGEST_S)
    except (ValueError, OverflowError):
        return None
