"""The process that fetches: it gives up its rights, then touches the network.

It is started by `hpcimg.parent`, which hands it a request on standard input and
an open file, and hears of it line by line on standard output: JSON objects
with a "say" field. Only code and its imports are read with the parent's rights.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any, NoReturn

from hpcimg import sources
from hpcimg.errors import Bug, CacheUnusable, HpcimgError, NoRoom
from hpcimg.fetching import Settings
from hpcimg.reference import Reference
from hpcimg.sink import DeclinedOffer, Sink

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> NoReturn:
    """Serve one request and end."""
    request = json.loads(sys.stdin.readline())
    reference = Reference(*request["reference"])
    source = importlib.import_module(sources.MODULES.get(reference.scheme, sources.STATIC))
    try:
        _give_up_rights(request["account"], parent=request["parent"])
        sink = Sink(request["descriptor"], _say, _answer)
        settings = Settings(**request["settings"])
        unchanged = source.fetch(reference, sink, validator=request["validator"], settings=settings)
        _say("done", unchanged=unchanged, bytes=sink.position)
    except DeclinedOffer:
        _say("done", declined=True)
    except HpcimgError as error:
        _say("error", **error.to_dict())
    except OSError as error:
        _say("error", **_explain(error, reference.uri).to_dict())
    except Exception as error:
        _say(
            "error",
            traceback=traceback.format_exc(),
            **Bug(f"hpcimg could not fetch {reference.uri}", why=repr(error)).to_dict(),
        )
    sys.exit(0)


def _give_up_rights(account: list[Any] | None, *, parent: int) -> None:
    """Become the account, for good, and end when the parent does."""
    os.umask(0o077)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if account is not None:
        uid, gid, groups = account
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After setresuid: the kernel forgets the signal when the uid changes.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before prctl was called


def _explain(error: OSError, uri: str) -> HpcimgError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"the disk of this node filled up while {uri} was fetched")
    return CacheUnusable(f"{uri} could not be written to the cache", why=error.strerror or "")


def _say(what: str, /, **fields: object) -> None:
    sys.stdout.write(json.dumps({"say": what, **fields}) + "\n")
    sys.stdout.flush()


def _answer() -> bool:
    return sys.stdin.readline().strip() == "yes"
