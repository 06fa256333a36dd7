"""The unprivileged process: drops its privileges, then fetches, converts or verifies.

`hpcimg.worker.process` starts it with a socket as standard input, on which it gets one order and
open files; it reports line by line on standard output, with the messages of
`hpcimg.worker.protocol`. Only code and its imports are read with the parent's privileges.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import NoReturn

from hpcimg import schemes, writeback
from hpcimg.errors import (
    Bug,
    CacheUnusable,
    Forbidden,
    HpcimgError,
    Interrupted,
    MissingTool,
    NoRoom,
    TooLarge,
)
from hpcimg.fetch.contract import Declined, Offer, Unchanged
from hpcimg.fetch.sink import DeclinedOffer, Sink
from hpcimg.sources import userfiles
from hpcimg.units import format_size
from hpcimg.worker import namespaces, privileges, protocol, starting

_CONVERSION = "hpcimg.convert.image"
_MESSAGE_MAX = 1 << 20
_FILES_MAX = 253  # the kernel's limit for one message
# Writable memory of each process. For a fetch: parts in transit, and the threads' stacks.
_FETCH_BYTES = 1 << 30
# For a conversion: the names of ten million files, here and in mksquashfs, which also has queues
# and a thread with its stack for each processor.
_CONVERT_BYTES = 8 << 30
_PROCESSOR_BYTES = 64 << 20
_SLACK_BYTES = 64 << 20
_SHARE_FILES = 256  # beside a connection of each node
_NICENESS = 10  # the node's other jobs go first


def main() -> NoReturn:
    """Carry out one order and exit."""
    parent = _Parent()
    with contextlib.suppress(ImportError):  # imported again later, where the error can be reported
        for word in sys.argv[3:]:
            converts = word == starting.CONVERT
            importlib.import_module(_CONVERSION if converts else schemes.of(word).module)
    gc.freeze()  # what has been loaded stays
    gc.enable()
    start, files = parent.hear()
    starting.settle(nice=int(sys.argv[2]))
    assert isinstance(start, protocol.Start)
    order = start.order
    work = _Work(start, files, parent)
    doing, done = work.words()
    try:
        parent.say(work.run())
    except DeclinedOffer:
        parent.say(Declined())
    except HpcimgError as error:
        parent.fail(error)
    except MemoryError:
        why = f"it takes more memory to {doing} than this node allows for one image"
        parent.fail(TooLarge(f"{order.uri} is too large", why=why))
    except OSError as error:
        parent.fail(_explain(error, order.uri, done, start.image_bytes))
    except ModuleNotFoundError as error:
        parent.fail(MissingTool.of_package(error))
    except Exception as error:
        if isinstance(error, RuntimeError) and "new thread" in str(error):  # as Python says it
            parent.fail(_no_more(order.uri, done, "no thread could be started"))
            sys.exit(0)
        bug = Bug(f"hpcimg could not {doing} {order.uri}", why=repr(error))
        parent.fail(bug, traceback=traceback.format_exc())
    sys.exit(0)


class _Work:
    """One order, and its execution."""

    def __init__(self, start: protocol.Start, files: list[int], parent: _Parent) -> None:
        self._start = start
        self._files = files
        self._parent = parent

    def words(self) -> tuple[str, str]:
        """Return the activity in two forms, for messages."""
        match self._start.order:
            case protocol.Fetch():
                return "fetch", "fetched"
            case protocol.Convert():
                return "convert", "converted"
            case protocol.Verify():
                return "verify", "verified"
            case protocol.Share():
                return "share", "shared"

    def run(self) -> protocol.Report:
        """Carry out the order; return the last report. Raises HpcimgError and anything else."""
        match self._start.order:
            case protocol.Fetch() as order:
                return self._fetch(order)
            case protocol.Convert() as order:
                return self._convert(order)
            case protocol.Verify() as order:
                return self._verify(order)
            case protocol.Share() as order:
                return self._share(order)

    def _fetch(self, order: protocol.Fetch) -> protocol.Report:
        wanted = order.reference
        scheme = schemes.of(wanted.scheme)
        source = importlib.import_module(scheme.module)
        if not order.settings.as_user:
            # Other workers have the same account, and start programs that can be inspected.
            namespaces.mount_own_proc()
        self._give_up_privileges(_FETCH_BYTES)
        sink = Sink(self._files[0], self._parent)
        try:
            unchanged = source.fetch(
                wanted, sink, validator=order.validator, settings=order.settings
            )
        except Forbidden as error:
            if scheme.mounted or not order.settings.as_user or userfiles.home():
                raise
            why = f"{error.why}; your uid has no account on this node, so no home with a login"
            raise Forbidden(error.what, why=why.removeprefix("; "), do=error.do) from error
        return Unchanged() if unchanged else protocol.Done()

    def _convert(self, order: protocol.Convert) -> protocol.Report:
        from hpcimg.convert.image import Work, convert

        namespaces.mount_own_proc()
        processors = len(os.sched_getaffinity(0))
        self._give_up_privileges(_CONVERT_BYTES + processors * _PROCESSOR_BYTES)
        os.nice(_NICENESS)
        [output] = self._files
        layers: dict[int, int] = {}

        def layer(number: int) -> int:
            while number not in layers:
                message, files = self._parent.hear()
                assert isinstance(message, protocol.Layer)
                [layers[message.number]] = files
            return layers[number]

        def tell(done: int, total: int, disk_bytes: int) -> None:
            writeback.begin(output)
            self._parent.say(protocol.Converted(done, total, disk_bytes))

        convert(Work(**order._asdict(), layer=layer, output=output), tell)
        return protocol.Done()

    def _verify(self, order: protocol.Verify) -> protocol.Report:
        from hpcimg.image.verify import Work, verify

        namespaces.mount_own_proc()
        self._give_up_privileges(_CONVERT_BYTES)
        verify(Work(**order._asdict(), file=self._files[0]))
        return protocol.Done()

    def _share(self, order: protocol.Share) -> protocol.Report:
        from hpcimg.peers.member import share

        namespaces.mount_own_proc()
        self._give_up_privileges(_FETCH_BYTES, open_files=len(order.nodes) + _SHARE_FILES)
        share(order, self._files, self._parent)
        return protocol.Done()

    def _give_up_privileges(
        self, memory_bytes: int, *, open_files: int = privileges.MOST_FILES
    ) -> None:
        # A little more, so that the parent notices first and can report what is too large.
        most = self._start.image_bytes + _SLACK_BYTES
        privileges.give_up(
            self._start.account,
            file_bytes=most,
            memory_bytes=memory_bytes,
            open_files=open_files,
        )
        self._parent.end_without_it()


def _no_more(uri: str, done: str, why: str) -> HpcimgError:
    """Return the error for a node, or an account, that has reached a limit of its processes."""
    return Interrupted(f"{uri} could not be {done} now", why=why)


def _explain(error: OSError, uri: str, done: str, image_bytes: int) -> HpcimgError:
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return _no_more(uri, done, error.strerror or "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"the disk of this node filled up while {uri} was {done}")
    if error.errno == errno.EFBIG:
        most = format_size(image_bytes)
        return TooLarge(f"{uri} is too large", why=f"this node accepts images up to {most}")
    return CacheUnusable(f"{uri} could not be written to the cache", why=error.strerror or "")


class _Parent:
    """The process that started this one: gives orders and answers, receives reports.

    It is a `hpcimg.fetch.sink.Parent`, for several threads.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._saying = threading.Lock()
        self._asking = threading.Lock()  # answers do not say which question they belong to
        self._heard = b""
        self._files: dict[int, list[int]] = {}  # by the number of their message among those

    def hear(self) -> tuple[protocol.Start | protocol.Answer, list[int]]:
        """Return the next message, and the files that came with it."""
        while b"\n" not in self._heard:
            data, files, _, _ = socket.recv_fds(self._socket, _MESSAGE_MAX, _FILES_MAX)
            if not data:
                os._exit(1)  # the parent is gone
            self._heard += data
            # unix(7): what is sent with files may be received together with what was sent before
            # it, not after it. So they belong to the last message that begins here.
            if files:
                self._files[self._heard.count(b"\n", 0, -1)] = files
        line, _, self._heard = self._heard.partition(b"\n")
        files = self._files.pop(0, [])
        self._files = {number - 1: files for number, files in self._files.items()}
        return protocol.to_worker(line), files

    def holds_more(self) -> bool:
        """Tell whether another message was received together with the last one."""
        return b"\n" in self._heard

    def fileno(self) -> int:
        """Return the socket by which it speaks."""
        return self._socket.fileno()

    def end_without_it(self) -> None:
        """Exit if the parent died before the kernel was asked to signal that."""
        poll = select.poll()
        poll.register(self._socket, 0)
        if poll.poll(0):  # it closed the connection
            os._exit(1)

    def say(self, report: protocol.Report) -> None:
        line = protocol.encode(report).decode()
        with self._saying:
            sys.stdout.write(line)
            sys.stdout.flush()

    def fail(self, error: HpcimgError, *, traceback: str = "") -> None:
        """Report why the order was not carried out."""
        self.say(protocol.Failed(**error.to_dict(), traceback=traceback))

    def offer(self, offer: Offer) -> Mapping[int, int] | None:
        answer, files = self._ask(protocol.Offering(offer))
        if isinstance(answer, protocol.Wanted):
            return dict(zip(answer.layers, files, strict=True))
        return None

    def digest(self, layer: int | None) -> str:
        answer, _ = self._ask(protocol.DigestWanted(layer))
        assert isinstance(answer, protocol.Digest)
        return answer.sha256

    def moved(self, layer: int | None, done: int, total: int | None) -> None:
        self.say(protocol.Moved(layer, done, total))

    def rewound(self, layer: int | None) -> None:
        self.say(protocol.Rewound(layer))

    def complete(self, layer: int) -> None:
        self.say(protocol.Complete(layer))

    def retrying(self, why: str, wait_s: float) -> None:
        self.say(protocol.Retrying(why, wait_s))

    def _ask(self, question: protocol.Report) -> tuple[protocol.Start | protocol.Answer, list[int]]:
        with self._asking:
            self.say(question)
            return self.hear()
