"""The helper behind a socket: stages images for running jobs, long after Prolog.

systemd starts one process per connection, as root, with the connection as standard input. Anybody
can connect. So the kernel first identifies the caller, a user has only a few requests at a time,
and the request is one short line that must arrive in time. Images are staged as by Prolog: under
the same policy, with the same locks and the user's rights, and with a lease for the job, which
Epilog releases.

The request is a verb, a space and a reference: `stage URI`, or `pyxis URI` for the importer.
The answer is one JSON object, which `hpcimg.slurm.ask` reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hpcimg.cache.paths import Layout
from hpcimg.config import files as conffiles
from hpcimg.errors import (
    BadReference,
    DeadlinePassed,
    HpcimgError,
    Interrupted,
    NotAllowed,
    foreseen,
)
from hpcimg.slurm import peer
from hpcimg.slurm.peer import Peer

TURNS = 4  # concurrent requests of one user, including those being read
LINE_MAX = 2048  # bytes; a reference has at most 1024 characters
_TO_ASK_S = 5.0
_AFTER_S = 50.0  # after the deadline, as in Prolog
VERBS = ("stage", "pyxis")


def main() -> int:
    """Answer one request on standard input. Returns 2 if that is not a unix socket, else 0."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        print("hpcimg-helper is started by hpcimg.socket", file=sys.stderr)
        return 2
    with socket.socket(fileno=os.dup(0)) as connection:
        if connection.family != socket.AF_UNIX:
            print("hpcimg-helper answers only on unix sockets", file=sys.stderr)
            return 2
        try:
            answer = _serve(connection)
        except Exception as error:
            answer = _error(error)
        if answer:
            _tell(connection, answer)
    return 0


def _serve(connection: socket.socket) -> dict[str, object]:
    """Return the answer, empty if it has already been sent."""
    layout = Layout(*conffiles.directories(conffiles.read_files(conffiles.main_file())))
    with peer.connected_to(connection) as who:
        if who.uid == 0:
            raise NotAllowed("root can stage images itself", do="Run `hpcimg stage`.")
        with _turn(layout, who.uid) as has_turn:
            if not has_turn:
                return {"busy": True}
            verb, uri = _read_request(connection)
            return _in_time(connection, who, verb, uri)


@contextmanager
def _turn(layout: Layout, uid: int) -> Iterator[bool]:
    """Hold one of a user's slots; yield False if none is free.

    The slot is freed when this process and the children that inherited the lock have ended.
    """
    os.makedirs(layout.turns, mode=0o700, exist_ok=True)
    for number in range(TURNS):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{layout.turns}/{uid}.{number}", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            yield True
        finally:
            os.close(descriptor)
        return
    yield False


def _read_request(connection: socket.socket) -> tuple[str, str]:
    """Return verb and reference. Raises BadReference, or DeadlinePassed if it does not arrive."""
    until = time.monotonic() + _TO_ASK_S
    heard = b""
    while b"\n" not in heard:
        left = until - time.monotonic()
        if left <= 0:
            raise DeadlinePassed(f"no request arrived within {_TO_ASK_S:g} s")
        connection.settimeout(left)
        try:
            more = connection.recv(LINE_MAX + 1 - len(heard))
        except TimeoutError:
            continue
        except OSError:
            more = b""
        heard += more
        if not more or len(heard) > LINE_MAX:
            raise BadReference("the request is not a single short line")
    line = heard.partition(b"\n")[0].decode("ascii", "replace")
    verb, _, uri = line.partition(" ")
    if verb not in VERBS or not uri:
        raise BadReference("the request is unknown")
    return verb, uri


def _in_time(connection: socket.socket, who: Peer, verb: str, uri: str) -> dict[str, object]:
    """Stage the image in a child process with a time limit. Its answer is sent from there."""
    from hpcimg.slurm import watch

    def work() -> int:
        _tell(connection, _hit(who, verb, uri) or _staged(who, verb, uri))
        return 0

    code = watch.within(_limit_s, work)
    if code is None:
        raise DeadlinePassed(
            "the image was not ready in time",
            why=f"hpcimg took longer than {_limit_s():.0f} s: a disk of this node may hang",
            do="Tell the administrators: this node needs attention.",
        )
    if code:
        raise Interrupted("staging failed", why=f"its process exited with code {code}")
    return {}


def _limit_s() -> float:
    """Return how long the staging process may take at most, in seconds."""
    from hpcimg.config import load as config

    try:
        return float(config.load().deadline_s) + _AFTER_S
    except HpcimgError:
        return _AFTER_S


def _hit(who: Peer, verb: str, uri: str) -> dict[str, object] | None:
    """Return the answer for a cached image, None if the slow path has to answer."""
    from hpcimg.cache import events, hot
    from hpcimg.slurm import admission, jobfiles, pyxis

    began = time.monotonic()
    image_format = pyxis.FORMAT if verb == "pyxis" else ""
    try:
        files = conffiles.read_files(conffiles.main_file())
        layout, job = Layout(*conffiles.directories(files)), peer.job_by_cgroup(who)
        if image_format and conffiles.raw_value(files, "slurm", "pyxis") not in conffiles.YES:
            return None
        name, fingerprint = hot.name_of(uri, image_format), conffiles.fingerprint(files)

        def look() -> hot.Hit | None:
            return hot.lookup(layout, name, job=job, uid=who.uid, fingerprint=fingerprint)

        hit = admission.leased(layout, job, who, look) if job else None
        if hit is None:
            return None
        if image_format:
            jobfiles.add_for_pyxis(layout, job, who.uid, uri, hit.path)
        took_s = round(time.monotonic() - began, 4)
        size = hit.size_bytes
        events.record(layout.events, "hit", job=job, key=hit.key, bytes=size, took_s=took_s)
        return {"path": hit.path, "key": hit.key, "bytes": size, "how": "hit"}
    except Exception:
        return None


def _staged(who: Peer, verb: str, uri: str) -> dict[str, object]:
    """Stage the image; return the answer, errors included."""
    try:
        from hpcimg.config import load as config
        from hpcimg.slurm import granted, query

        conf = config.load()
        query.look_in(conf.slurm_bin)
        return granted.answer(conf, peer.job_of(who), who, uri, for_pyxis=verb == "pyxis")
    except Exception as error:
        return _error(error)


def _error(error: Exception) -> dict[str, object]:
    """Return the answer for an error."""
    if not isinstance(error, HpcimgError):
        traceback.print_exc()
    return {"error": foreseen(error).to_dict()}


def _tell(connection: socket.socket, answer: dict[str, object]) -> None:
    """Send the answer. Errors are ignored: the client may have gone away."""
    connection.settimeout(_TO_ASK_S)
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode() + b"\n")
