"""The site's proxy for an address, if Prolog's environment names one.

requests decides which one that is, and which hosts are reached without it, as users of these
variables expect. It is not loaded on nodes without a proxy: that takes a tenth of the time in which
a small image is staged.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from urllib3 import PoolManager
from urllib3.util import parse_url

from hpcimg.errors import ConfigError
from hpcimg.http.urls import shown


def _any() -> bool:
    names = (name.lower() for name, value in os.environ.items() if value)
    return any(name.endswith("_proxy") and name != "no_proxy" for name in names)


if _any():  # now, since a worker may not be able to read it later
    import requests.adapters  # noqa: F401


def proxy_for(url: str) -> str:
    """Return the address of the proxy for a URL, "" for none."""
    if not _any():
        return ""
    from requests.utils import get_environ_proxies, select_proxy

    found = select_proxy(url, get_environ_proxies(url)) or ""
    return found if "://" in found or not found else f"http://{found}"


def manager(proxy: str, *, connections_kept: int, **options: Any) -> PoolManager:
    """Return the connections through a proxy; `options` are urllib3's. Raises ConfigError."""
    from requests.adapters import HTTPAdapter

    adapter = HTTPAdapter(pool_maxsize=connections_kept)
    with contextlib.suppress(ValueError):
        if parse_url(proxy).host:
            made: PoolManager = adapter.proxy_manager_for(proxy, **options)
            return made
    raise ConfigError(
        f"the proxy {shown(proxy)} cannot be used",
        why="it is not the address of an http or https proxy",
        do="Correct https_proxy, http_proxy and all_proxy in Prolog's environment.",
    )
