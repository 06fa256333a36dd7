"""Starting a worker's process; early, where it is known that one will be needed.

A process takes longer to load what it needs than to fetch a small image. One that is started
early loads that while the one who needs it still loads its own. It has all rights until it
gets its order, and nobody but who started it can give it one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import NamedTuple

from hpcimg.worker import namespaces

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.worker.main import main; main()"
)
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What decides how the network is reached. Nothing else of our environment is the child's.
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON = (*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES)


class Started(NamedTuple):
    """A process that waits for its order, and the socket on which it gets it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket


_early: list[Started] = []


def early(scheme: str) -> None:
    """Start the process that the next worker is to have, for images of a scheme."""
    _early.append(_start(scheme))


def take() -> Started:
    """Return the process that was started early, or start one."""
    return _early.pop() if _early else _start()


def end_early() -> None:
    """End a process that was started early and that nobody took."""
    while _early:
        process, ours = _early.pop()
        ours.close()
        process.kill()
        process.communicate()


def _start(*words: str) -> Started:
    ours, theirs = socket.socketpair()
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    with theirs, namespaces.around_next_process():
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, _ROOT, *words],
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            # Not ours: who reads that would wait for a process that cannot be ended.
            stderr=subprocess.PIPE,
            bufsize=0,
            # Of its own, so that what it starts can be killed with it.
            start_new_session=True,
            # An account's .netrc is no place for what all jobs may fetch.
            env={**environment, "NETRC": "/dev/null", "LC_ALL": "C.UTF-8"},
        )
    return Started(process, ours)
