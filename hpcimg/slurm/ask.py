"""Ask this node's helper for an image, as a process of a job.

Imports only the standard library and hpcimg.errors, since pyxis's importer runs it for each step.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import time

from hpcimg.errors import HpcimgError, NodeError, Unreachable, from_dict

NO_HELPER = 3  # exit code: there is no helper, or it declined
_PATIENCE_S = 900.0  # with a busy helper; one that has begun ends by its own deadline
_SILENCE_S = 60.0  # with a socket that never answers
_PAUSE_S = 0.2, 5.0  # the first one and the longest
_ANSWER_MAX = 64 << 10


def ask(path: str, verb: str, uri: str) -> dict[str, object] | None:
    """Have an image staged by the helper at a socket; return its path, key, bytes and how.

    Retries while the helper is busy. Returns None if there is no helper, if it does not answer, or
    if it declines. Raises the helper's HpcimgError, or Unreachable if it stays busy.
    """
    began, pause = time.monotonic(), _PAUSE_S[0]
    until, silent_until = began + _PATIENCE_S, began + _SILENCE_S
    while True:
        try:
            answer = _asked_once(path, f"{verb} {uri}\n")
        except (FileNotFoundError, ConnectionRefusedError, PermissionError):
            return None
        if answer:
            silent_until = time.monotonic() + _SILENCE_S
        elif time.monotonic() > silent_until:
            return None
        if error := answer.get("error"):
            raise from_dict(error if isinstance(error, dict) else {})
        if answer.get("declined"):
            return None
        if answer and not answer.get("busy"):
            return answer
        if time.monotonic() > until:
            raise Unreachable(
                f"{uri} was not staged", why="there are too many requests on this node right now"
            )
        # Jitter, so that waiting processes do not retry all at once.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _PAUSE_S[1])


def _asked_once(path: str, line: str) -> dict[str, object]:
    """Return one answer, an empty one if the connection was closed without any.

    systemd closes connections beyond its limit, and those for which the helper cannot be started.
    """
    heard = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(line.encode("ascii", "replace"))
        with contextlib.suppress(ConnectionResetError):
            while len(heard) < _ANSWER_MAX and (more := connection.recv(_ANSWER_MAX)):
                heard += more
    if not heard:
        return {}
    try:
        answer = json.loads(heard)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NodeError(f"the helper at {path} sent an invalid answer")
    return answer


def main() -> int:
    """Print the path of an image; the arguments are a socket, a verb and a reference."""
    try:
        answer = ask(*sys.argv[1:])
    except HpcimgError as error:
        print(f"hpcimg: {error}", file=sys.stderr)
        return error.exit_code
    if answer is None:
        return NO_HELPER
    print(answer["path"])
    return 0
