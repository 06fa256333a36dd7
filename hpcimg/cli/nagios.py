"""One line for Nagios and compatible systems, as in the Monitoring Plugins guidelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcimg.errors import printable
from hpcimg.health import NOTE, PROBLEM, Finding

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
_NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_WARNED_OF = ("failures",)  # notes about events, not about the node's setup
_TOLD_MAX = 1000  # characters; longer lines are truncated on the way


def report(findings: Sequence[Finding], seen: Mapping[str, Any] | None) -> tuple[str, int]:
    """Return the line and the exit code; `seen` is the node's status, if available."""
    bad = [finding for finding in findings if finding.result == PROBLEM]
    odd = [f for f in findings if f.result == NOTE and f.check in _WARNED_OF]
    code = CRITICAL if bad else WARNING if odd else OK
    told = "; ".join(f"{f.check}: {f.what}" for f in bad or odd)
    notes = sum(finding.result == NOTE for finding in findings)
    values = [f"problems={len(bad)};;0", f"notes={notes}"]
    values += _performance(seen) if seen else []
    return line(code, told or f"{len(findings)} checks", values), code


def line(code: int, told: str, values: Sequence[str] = ()) -> str:
    """Return one line; only these values can start the performance data."""
    text = printable(told).replace("|", "/")[:_TOLD_MAX]
    return f"HPCIMG {_NAMES[code]} - {text}" + (f" | {' '.join(values)}" if values else "")


def _performance(seen: Mapping[str, Any]) -> list[str]:
    cache = seen["cache"]
    limits = f";{cache['high']};{cache['max_size']};0" if "max_size" in cache else ""
    values = [f"cache={cache['bytes']}B{limits}", f"in_use={cache['in_use_bytes']}B"]
    if "free_bytes" in cache:
        values.append(f"free={cache['free_bytes']}B;;{cache['min_free']}:")
    return [*values, f"images={cache['images']}", f"jobs={len(seen['jobs'])}"]
