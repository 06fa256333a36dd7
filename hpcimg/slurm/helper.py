"""The helper behind a socket: stages what a job asks for when Prolog is long over.

systemd starts one for each connection, as root, with the connection as standard input. Anybody
can connect, so: who asks is settled first, by the kernel; no user has more than a few of them
at work; and the request is one short line that has to be there in time. What is staged is what
Prolog would stage: by the same policy, through the same locks, with that user's rights, and
with a lease of the job, which Epilog releases.

The request is a verb, a blank and a reference: `stage URI`, or `pyxis URI` for the importer.
The answer is one JSON object, as `hpcimg.slurm.ask` reads it.
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

TURNS = 4  # requests of one user that are worked at, or read, at one time
LINE_MAX = 2048  # bytes; a reference has 1024 characters at most
_TO_ASK_S = 5.0
_AFTER_S = 50.0  # after the deadline, as for Prolog
VERBS = ("stage", "pyxis")


def main() -> int:
    """Answer the one request on standard input; return 0 unless it is no unix socket."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        print("hpcimg-helper is started by hpcimg.socket", file=sys.stderr)
        return 2
    with socket.socket(fileno=os.dup(0)) as connection:
        if connection.family != socket.AF_UNIX:
            print("hpcimg-helper answers on unix sockets alone", file=sys.stderr)
            return 2
        try:
            answer = _serve(connection)
        except Exception as error:
            if not isinstance(error, HpcimgError):
                traceback.print_exc()
            answer = {"error": foreseen(error).to_dict()}
        if answer:
            _tell(connection, answer)
    return 0


def _serve(connection: socket.socket) -> dict[str, object]:
    """Return the answer, nothing where it was given already."""
    layout = Layout(*conffiles.directories(conffiles.read_files(conffiles.main_file())))
    with peer.connected_to(connection) as who:
        if who.uid == 0:
            raise NotAllowed("root needs nobody to stage for it", do="Run `hpcimg stage`.")
        with _turn(layout, who.uid) as has_turn:
            if not has_turn:
                return {"busy": True}
            verb, uri = _read_request(connection)
            return _in_time(connection, who, verb, uri)


@contextmanager
def _turn(layout: Layout, uid: int) -> Iterator[bool]:
    """Hold one of a user's turns; give whether there was one.

    It is free again when this process has ended, and all that it started with the lock.
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
    """Return verb and reference. Raises BadReference, and DeadlinePassed after some seconds."""
    until = time.monotonic() + _TO_ASK_S
    heard = b""
    while b"\n" not in heard:
        left = until - time.monotonic()
        if left <= 0:
            raise DeadlinePassed(f"nothing was asked for in {_TO_ASK_S:g} s")
        connection.settimeout(left)
        try:
            more = connection.recv(LINE_MAX + 1 - len(heard))
        except TimeoutError:
            continue
        except OSError:
            more = b""
        heard += more
        if not more or len(heard) > LINE_MAX:
            raise BadReference("the request is not one short line")
    line = heard.partition(b"\n")[0].decode("ascii", "replace")
    verb, _, uri = line.partition(" ")
    if verb not in VERBS or not uri:
        raise BadReference("the request is none that is known")
    return verb, uri


def _in_time(connection: socket.socket, who: Peer, verb: str, uri: str) -> dict[str, object]:
    """Have it staged in a process that is not waited for for ever; return an answer of our own."""
    from hpcimg.config import load as config
    from hpcimg.slurm import query, watch

    conf = config.load()
    query.look_in(conf.slurm_bin)
    job = peer.job_of(who)

    def work() -> int:
        from hpcimg.slurm import granted

        _tell(connection, granted.answer(conf, job, who, uri, for_pyxis=verb == "pyxis"))
        return 0

    limit_s = conf.deadline_s + _AFTER_S
    code = watch.within(lambda: limit_s, work)
    if code is None:
        raise DeadlinePassed(
            "the image was not ready in time",
            why=f"hpcimg did not end in {limit_s:.0f} s: a disk of this node may hang",
            do="Tell the administrators: this node needs attention.",
        )
    if code:
        raise Interrupted("staging failed", why=f"its process ended with exit code {code}")
    return {}


def _tell(connection: socket.socket, answer: dict[str, object]) -> None:
    """Send the answer; who has gone away, or does not listen, has it not."""
    connection.settimeout(_TO_ASK_S)
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode() + b"\n")
