"""The process that works without rights: it gives them up, then fetches, converts or verifies.

It is started by `hpcimg.worker.process` with a socket as its standard input, on which it
gets one request and open files, and it is heard line by line on standard output:
JSON objects with a "say" field. Only code and its imports are read with the
parent's rights.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import select
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

from hpcimg import schemes
from hpcimg.errors import Bug, CacheUnusable, HpcimgError, MissingTool, NoRoom, TooLarge
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import DeclinedOffer, Sink
from hpcimg.reference import Reference
from hpcimg.units import format_size
from hpcimg.worker import namespaces, privileges
from hpcimg.worker.accounts import Account

_MESSAGE_MAX = 1 << 20
_FILES_MAX = 253  # the kernel's limit for one message
# Writable memory of each process. To fetch: parts that come side by side, threads' stacks.
_FETCH_BYTES = 1 << 30
# To convert: what is remembered of ten million files, here and in mksquashfs, which has queues
# and a thread with its stack for each processor besides.
_CONVERT_BYTES = 8 << 30
_PROCESSOR_BYTES = 64 << 20
_SLACK_BYTES = 64 << 20
_DONE = {"fetch": "fetched", "convert": "converted", "verify": "verified"}
_NICENESS = 10  # the node's other jobs go first


def main() -> NoReturn:
    """Serve one request and end."""
    words = _Words()
    request, files = words.hear()
    uri = request["uri"]
    try:
        if request["work"] == "fetch":
            _fetch(request, files, words)
        elif request["work"] == "verify":
            _verify(request, files, words)
        else:
            _convert(request, files, words)
    except DeclinedOffer:
        words.say("done", declined=True)
    except HpcimgError as error:
        words.say("error", **error.to_dict())
    except MemoryError:
        why = f"to {request['work']} it takes more memory than this node gives to one image"
        words.say("error", **TooLarge(f"{uri} is too large", why=why).to_dict())
    except OSError as error:
        words.say("error", **_explain(error, request).to_dict())
    except ModuleNotFoundError as error:
        words.say("error", **MissingTool.of_package(error).to_dict())
    except Exception as error:
        words.say(
            "error",
            traceback=traceback.format_exc(),
            **Bug(f"hpcimg could not {request['work']} {uri}", why=repr(error)).to_dict(),
        )
    sys.exit(0)


def _fetch(request: dict[str, Any], files: list[int], words: _Words) -> None:
    reference = Reference(*request["reference"])
    source = importlib.import_module(schemes.of(reference.scheme).module)
    settings = Settings(**request["settings"])
    _give_up_rights(request, words, _FETCH_BYTES)
    sink = Sink(files[0], words.say, words.answer)
    unchanged = source.fetch(reference, sink, validator=request["validator"], settings=settings)
    words.say("done", unchanged=unchanged)


def _convert(request: dict[str, Any], files: list[int], words: _Words) -> None:
    from hpcimg.convert.image import Work, convert

    namespaces.mount_own_proc()
    processors = len(os.sched_getaffinity(0))
    _give_up_rights(request, words, _CONVERT_BYTES + processors * _PROCESSOR_BYTES)
    os.nice(_NICENESS)
    output, *layers = files

    def tell(done: int, total: int, disk_bytes: int) -> None:
        words.say("progress", bytes=done, total=total, beside=disk_bytes)

    convert(
        Work(uri=request["uri"], layers=tuple(layers), output=output, **request["settings"]), tell
    )
    words.say("done", unchanged=False)


def _verify(request: dict[str, Any], files: list[int], words: _Words) -> None:
    from hpcimg.image.verify import Work, verify

    namespaces.mount_own_proc()
    _give_up_rights(request, words, _CONVERT_BYTES)
    verify(Work(uri=request["uri"], file=files[0], **request["settings"]))
    words.say("done")


def _give_up_rights(request: dict[str, Any], words: _Words, memory_bytes: int) -> None:
    account = Account(*request["account"]) if request["account"] else None
    # With some more, so that the parent can say first what is too large, and why.
    most = request["image_bytes"] + _SLACK_BYTES
    privileges.give_up(account, file_bytes=most, memory_bytes=memory_bytes)
    words.end_without_parent()


def _explain(error: OSError, request: dict[str, Any]) -> HpcimgError:
    uri, done = request["uri"], _DONE[request["work"]]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"the disk of this node filled up while {uri} was {done}")
    if error.errno == errno.EFBIG:
        most = format_size(request["image_bytes"])
        return TooLarge(f"{uri} is too large", why=f"this node takes images up to {most}")
    return CacheUnusable(f"{uri} could not be written to the cache", why=error.strerror or "")


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

    def end_without_parent(self) -> None:
        """End where the parent died before the kernel was asked to tell."""
        poll = select.poll()
        poll.register(self._socket, 0)
        if poll.poll(0):  # it hung up
            os._exit(1)

    def answer(self) -> dict[int, int] | str | None:
        """Return the files for the layers that were offered, None for no, or a digest."""
        said, files = self.hear()
        if "sha256" in said:
            return str(said["sha256"])
        if not said["wanted"]:
            return None
        return dict(zip(said["layers"], files, strict=True))

    def say(self, what: str, /, **fields: object) -> None:
        line = json.dumps({"say": what, **fields}) + "\n"
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()
