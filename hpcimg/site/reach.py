"""Whether the configured services can be reached from this node.

A connection is opened and closed again: nothing is sent, and nothing that a server says is read. So
root may do it.
"""

from __future__ import annotations

import concurrent.futures
import socket
import urllib.request
from urllib.parse import urlsplit

from hpcimg.config import registriesconf
from hpcimg.config.keys import Config
from hpcimg.health import OK, PROBLEM, Finding
from hpcimg.site.hosts import site_hosts

_AT_ONCE = 16
_PORTS = {"https": 443, "http": 80}


def check(config: Config) -> list[Finding]:
    """Connect to each host named in the configuration; return one finding for each."""
    wanted = _places(config)
    if not wanted:
        return [Finding("reach", OK, "the configuration names no server to check")]
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda url: _reach(url, config.connect_timeout_s), wanted))


def _places(config: Config) -> list[str]:
    """Return an address for each server, except those in users' references."""
    rules = registriesconf.read(config.registries_conf)
    urls = [url for url in (config.s3_url, config.swift_url) if url]
    urls += [mirror.url for mirror in config.mirrors.values()]
    statics = [static.url for static in config.statics.values()]
    plain = [url for url in (*urls, *statics, *config.aliases.values()) if url.startswith("http:")]
    insecure = {urlsplit(url).netloc for url in plain}
    insecure |= {host for host, said in config.registries.items() if said.insecure}
    hosts = site_hosts(config, rules, *urls)
    return [
        f"{'http' if host in insecure else 'https'}://{host}" for host in hosts if "*" not in host
    ]


def _reach(url: str, timeout_s: float) -> Finding:
    parts = urlsplit(url)
    shown = parts.netloc
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        shown += f" through the proxy {parts.hostname}"
    try:
        at = (parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443))
        socket.create_connection(at, timeout=timeout_s).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        do = "Check the network, the proxy, and whether the server is running."
        return Finding("reach", PROBLEM, f"{shown} cannot be reached", why, do)
    return Finding("reach", OK, f"{shown} can be reached")
