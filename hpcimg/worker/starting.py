"""Start a worker process, early if it is known that one will be needed.

Loading Python modules takes a worker longer than fetching a small image. A worker that is started
early loads them while its parent still loads its own. It has root's rights until it gets its
order, which only its parent can send.
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
# Environment variables that decide how to reach the network. No others are passed on.
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON = (*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES)


class Started(NamedTuple):
    """A process that waits for its order, with the socket to send it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket


_early: list[Started] = []


def early(scheme: str) -> None:
    """Start the process for the next worker, for images of a URI scheme."""
    _early.append(_start(scheme))


def take() -> Started:
    """Return the process that was started early, or start one."""
    return _early.pop() if _early else _start()


def end_early() -> None:
    """End a process that was started early and not used."""
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
            # Not inherited: its reader would wait for a process that cannot be killed.
            stderr=subprocess.PIPE,
            bufsize=0,
            # A session of its own, so that its children can be killed with it.
            start_new_session=True,
            # An account's .netrc must not be used for images that are shared.
            env={**environment, "NETRC": "/dev/null", "LC_ALL": "C.UTF-8"},
        )
    return Started(process, ours)
