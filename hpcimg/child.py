"""The process that works without rights: it gives them up, then fetches or converts.

It is started by `hpcimg.worker` with a socket as its standard input, on which it
gets one request and open files, and it is heard line by line on standard output:
JSON objects with a "say" field. Only code and its imports are read with the
parent's rights.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from hpcimg import rights, sources
from hpcimg.accounts import Account
from hpcimg.errors import Bug, CacheUnusable, HpcimgError, Interrupted, MissingTool, NoRoom
from hpcimg.fetching import Settings
from hpcimg.reference import Reference
from hpcimg.sink import DeclinedOffer, Sink

_MESSAGE_MAX = 1 << 20
_MEMORY_MAX = 512 << 20  # of a fetch, which needs a tenth: no server can take all of a node's
_FILES_MAX = 253  # the kernel's limit for one message
_NICENESS = 10  # the node's other jobs go first
_TELL_EVERY_S = 0.2


def main() -> NoReturn:
    """Serve one request and end."""
    words = _Words()
    request, files = words.hear()
    uri = request["uri"]
    try:
        if request["work"] == "fetch":
            _fetch(request, files, words)
        else:
            _convert(request, files, words)
    except DeclinedOffer:
        words.say("done", declined=True)
    except HpcimgError as error:
        words.say("error", **error.to_dict())
    except OSError as error:
        words.say("error", **_explain(error, uri).to_dict())
    except ModuleNotFoundError as error:
        words.say("error", **MissingTool.of_package(error).to_dict())
    except MemoryError:
        words.say("error", **_too_much(request["work"], uri).to_dict())
    except Exception as error:
        words.say(
            "error",
            traceback=traceback.format_exc(),
            **Bug(f"hpcimg could not {request['work']} {uri}", why=repr(error)).to_dict(),
        )
    sys.exit(0)


def _fetch(request: dict[str, Any], files: list[int], words: _Words) -> None:
    reference = Reference(*request["reference"])
    source = importlib.import_module(sources.MODULES.get(reference.scheme, sources.STATIC))
    settings = Settings(**request["settings"])
    _give_up_rights(request)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_MAX, _MEMORY_MAX))
    sink = Sink(files[0], words.say, words.answer)
    unchanged = source.fetch(reference, sink, validator=request["validator"], settings=settings)
    words.say("done", unchanged=unchanged)


def _convert(request: dict[str, Any], files: list[int], words: _Words) -> None:
    from hpcimg.convert.image import Work, convert

    _give_up_rights(request)
    os.nice(_NICENESS)
    output, *layers = files
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            words.say("progress", layer=None, bytes=done, total=total)

    convert(
        Work(uri=request["uri"], layers=tuple(layers), output=output, **request["settings"]), tell
    )
    words.say("done", unchanged=False)


def _give_up_rights(request: dict[str, Any]) -> None:
    account = Account(*request["account"]) if request["account"] else None
    rights.give_up(account, parent=request["parent"])


def _explain(error: OSError, uri: str) -> HpcimgError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"the disk of this node filled up while {uri} was fetched")
    return CacheUnusable(f"{uri} could not be written to the cache", why=error.strerror or "")


def _too_much(work: str, uri: str) -> HpcimgError:
    return Interrupted(
        f"the {work} of {uri} did not end well", why="it takes more memory than it may have"
    )


class _Words:
    """What goes back and forth between the parent and this process."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._lock = threading.Lock()

    def hear(self) -> tuple[dict[str, Any], list[int]]:
        """Return what the parent says next, and the files that come with it."""
        text, files = b"", []
        while not text.endswith(b"\n"):
            data, more, _, _ = socket.recv_fds(self._socket, _MESSAGE_MAX, _FILES_MAX)
            if not data:
                os._exit(1)  # the parent is gone
            text += data
            files += more
        said = json.loads(text)
        assert isinstance(said, dict)
        return said, files

    def answer(self) -> dict[int, int] | None:
        """Return the files for the layers that were offered, or None for no."""
        said, files = self.hear()
        if not said["wanted"]:
            return None
        return dict(zip(said["layers"], files, strict=True))

    def say(self, what: str, /, **fields: object) -> None:
        line = json.dumps({"say": what, **fields}) + "\n"
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()
