"""What the tests of faults share with those of whole hooks."""

from __future__ import annotations

from tests.integration.conftest import make_sif, sif, start, url

__all__ = ["make_sif", "sif", "start", "url"]
