"""Running a fetch in a process without rights, and checking after it.

The parent counts and digests the bytes itself, from the file, while the child
writes it: nothing that the child says about the content is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from typing import Any

from hpcimg.accounts import Account
from hpcimg.errors import Bug, DeadlinePassed, Interrupted, from_dict
from hpcimg.fetching import (
    Declined,
    Fetched,
    Offer,
    Offered,
    Outcome,
    Progress,
    Settings,
    Unchanged,
)
from hpcimg.reference import Reference

log = logging.getLogger(__name__)

_START = "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.child import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LINE_MAX = 64 * 1024
_CHUNK = 1 << 20
# What decides how the network is reached. Nothing else of our environment is the child's.
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON = (*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES)


def fetch(
    reference: Reference,
    descriptor: int,
    *,
    account: Account | None,
    settings: Settings,
    deadline: float,
    validator: str,
    offered: Offered,
    progress: Progress,
) -> Outcome:
    """Fetch in a child that runs as `account` (None: as we do).

    The rest is as `hpcimg.fetching.Fetch` says. The child is gone when this
    returns or raises. Raises DeadlinePassed when `deadline`, a time.monotonic()
    value, passes.
    """
    request = {
        "reference": list(reference),
        "account": account,
        "parent": os.getpid(),
        "descriptor": descriptor,
        "settings": settings._asdict(),
        "validator": validator,
    }
    follower = _Follower(descriptor)
    phase, total = "asking", None
    with _Child(reference.uri, descriptor, deadline) as child:
        child.tell(json.dumps(request))
        while True:
            said = child.hear()
            if said is None:
                progress(phase, follower.position, total)
                continue
            match said.pop("say"):
                case "offer":
                    child.tell("yes" if offered(Offer(**said)) else "no")
                case "progress":
                    follower.follow(int(said["bytes"]))
                    phase, total = "fetching", said["total"]
                    progress(phase, follower.position, total)
                case "rewind":
                    follower.rewind()
                case "retry":
                    log.warning(
                        "%s: next try in %.1f s: %s", child.uri, said["wait_s"], said["why"]
                    )
                    phase = "waiting"
                    progress(phase, follower.position, total)
                case "done" if said.get("declined"):
                    return Declined()
                case "done" if said["unchanged"]:
                    return Unchanged()
                case "done":
                    child.end()  # from here on nobody writes the file
                    return follower.finish()
                case "error":
                    if "traceback" in said:
                        log.error("%s", said["traceback"])
                    raise from_dict(said)
                case other:
                    raise Bug(f"the process that fetches {child.uri} said {other!r}")


class _Child:
    """The process that fetches, killed at the end of the context at the latest."""

    def __init__(self, uri: str, descriptor: int, deadline: float) -> None:
        self.uri = uri
        self._deadline = deadline
        self._heard = bytearray()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=[descriptor],
            # An account's .netrc is no place for what all jobs may fetch.
            env={**environment, "NETRC": "/dev/null", "LC_ALL": "C.UTF-8"},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stdin.close()
        self._stdout.close()

    def end(self) -> int:
        """Kill it if it still runs; return its exit code or minus the signal."""
        self._process.kill()
        return self._process.wait()

    def tell(self, line: str) -> None:
        # It may have ended; what it said last, or its exit code, then tells why.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(line.encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """Return the next thing it says, or None after a second of silence.

        Raises DeadlinePassed, Interrupted.
        """
        while (end := self._heard.find(b"\n")) < 0:
            left = self._deadline - time.monotonic()
            if left > 0 and not select.select([self._stdout], [], [], min(left, 1.0))[0]:
                return None
            if left <= 0:
                raise DeadlinePassed(
                    f"{self.uri} did not arrive in time",
                    why="the time that this site allows for staging is over",
                )
            more = os.read(self._stdout.fileno(), _LINE_MAX)
            if not more:
                raise self._ended()
            self._heard += more
            if len(self._heard) > 2 * _LINE_MAX:
                raise Bug(f"the process that fetches {self.uri} says too much")
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def _ended(self) -> Interrupted:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Interrupted(
            f"{self.uri} could not be fetched", why=f"the process that fetches {how}"
        )


class _Follower:
    """Digests a file behind the process that writes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.rewind()

    def rewind(self) -> None:
        self.position = 0
        self._digest = hashlib.sha256()

    def follow(self, end: int) -> None:
        """Read on up to `end`, or to where the file ends now."""
        while self.position < end:
            data = os.pread(self._descriptor, min(_CHUNK, end - self.position), self.position)
            if not data:
                return
            self._digest.update(data)
            self.position += len(data)

    def finish(self) -> Fetched:
        self.follow(os.fstat(self._descriptor).st_size)
        return Fetched(self.position, self._digest.hexdigest())
