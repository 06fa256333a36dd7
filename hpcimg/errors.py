"""What can go wrong, whose fault it is, and the exit codes.

Every error carries three texts: `what` happened and to what, `why`, and what to `do`. `str()` joins
them into the message for logs, terminals and job outputs. Exit codes come in ranges, one per class:

| exit code | class     | consequence                                         |
|-----------|-----------|-----------------------------------------------------|
| 10 - 19   | user      | the job fails with the message, the node stays      |
| 20 - 29   | transient | the job fails, a later attempt may succeed          |
| 30 - 39   | node      | the job fails, an administrator has to look at it   |
| 70        | bug       | the job fails, the traceback is in the log          |
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BRIEF_MAX = 3000  # a quoted reference has at most 1024 characters

_WHY_MAX = 500  # characters; may contain text from servers


def printable(text: str) -> str:
    """Escape characters that must not reach a terminal, a log or a line of the task prolog."""
    if text.isprintable():  # almost always, and there may be thousands of them
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# Whether a login could change an error: another one may get another answer; or nothing was
# requested, because only a login would have helped and there was none.
ANOTHER_LOGIN, NO_LOGIN = "another", "none"


class HpcimgError(Exception):
    """Base of all errors that hpcimg explains. Any other exception is a bug."""

    login = ""  # or one of those above
    retry_after_s: float | None = None  # when the server says when to ask again

    kind = "bug"
    exit_code = 70
    default_do = "Tell the administrators: the log on this node has the details."

    def __init__(self, what: str, *, why: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why if len(why) <= _WHY_MAX else f"{why[:_WHY_MAX]}..."
        self.do = do or self.default_do

    @property
    def brief(self) -> str:
        """What happened and why, without what to do."""
        text = printable(f"{self.what}: {self.why}" if self.why else self.what)
        text = text if len(text) <= _BRIEF_MAX else f"{text[:_BRIEF_MAX]}..."
        return text.rstrip(".")

    def __str__(self) -> str:
        return f"{self.brief}. {printable(self.do)}".rstrip()

    def to_dict(self) -> dict[str, str]:
        """Return the fields for `from_dict`, to recreate this error in another process."""
        fields = {"error": type(self).__name__, "what": self.what, "why": self.why, "do": self.do}
        more = {"login": self.login, "retry_after_s": str(self.retry_after_s or "")}
        return {**fields, **{name: value for name, value in more.items() if value}}


class UserError(HpcimgError):
    """The request cannot be met as it stands; retrying does not help."""

    kind = "user"
    exit_code = 10


class BadReference(UserError):
    """Not a reference to an image, or a malformed `container:` token."""

    default_do = "Write container:URI, for example container:oras://ghcr.io/org/image:1.0."


class NotAllowed(UserError):
    """The site's policy refuses this reference."""

    exit_code = 11
    default_do = "`hpcimg config` on a node shows what this site allows."

    @classmethod
    def unverified(cls, uri: str, why: str) -> NotAllowed:
        """Explain an image that the site does not trust."""
        return cls(
            f"{uri} is not verified",
            why=f"{why}, and this site accepts only verified images ([policy] verify)",
            do="Use an image that is signed by somebody whom this site trusts.",
        )


class NotFound(UserError):
    """The reference names something that does not exist."""

    exit_code = 12
    default_do = "Check the spelling, and that the image was not removed."


class Forbidden(UserError):
    """The place exists and denies access."""

    exit_code = 13
    default_do = "Check who may read it."


class NotAnImage(UserError):
    """The content is not an image that hpcimg supports."""

    exit_code = 14
    default_do = "hpcimg takes SIF and squashfs images; check what is at that address."


class WrongArchitecture(UserError):
    """An image for another processor."""

    exit_code = 15
    default_do = "Name an image that was built for this machine."


class TooLarge(UserError):
    """Larger than the site's limit, or than the whole cache."""

    exit_code = 16
    default_do = "Use a smaller image, or ask the administrators to raise the limit."


class TransientError(HpcimgError):
    """It failed now and may succeed later."""

    kind = "transient"
    exit_code = 20
    tried_again = True  # whether a retry within the same fetch may help
    default_do = "Submit the job again later; if it keeps failing, tell the administrators."


class Unreachable(TransientError):
    """A server did not answer, or answered that it cannot serve now."""


class DeadlinePassed(TransientError):
    """The time for staging is over."""

    exit_code = 21


class Interrupted(TransientError):
    """The process that fetches or converts was killed, possibly for lack of memory."""


class Damaged(TransientError):
    """The content is not what was announced: truncated, or another digest."""

    exit_code = 22
    tried_again = False  # a retry would get the same content


class NoRoom(TransientError):
    """The cache has no room now: everything in it is in use."""

    exit_code = 23


class InUse(TransientError):
    """It cannot be changed now: jobs use it, it is pinned, or a process is working on it."""

    exit_code = 24
    default_do = "Try again later."


class NodeError(HpcimgError):
    """A fault of this node or of its setup."""

    kind = "node"
    exit_code = 30
    default_do = "Tell the administrators: this node needs attention."


class CacheUnusable(NodeError):
    """The cache or state directory cannot be used."""


class ConfigError(NodeError):
    """The configuration cannot be read, or is invalid."""

    exit_code = 31
    default_do = "`hpcimg config` checks the files and shows every key."


class MissingTool(NodeError):
    """A required program or package is not installed."""

    exit_code = 32

    @classmethod
    def of_package(cls, error: ModuleNotFoundError) -> MissingTool:
        """Explain a Python package that could not be imported."""
        return cls(
            f"the Python package {error.name} is not installed on this node",
            do="Tell the administrators: `hpcimg doctor` shows what is missing.",
        )


class Bug(HpcimgError):
    """Anything unforeseen. The traceback is in the log."""


def from_os_error(
    error: OSError, path: str = "", *, cannot: str = "be used", do: str = ""
) -> HpcimgError:
    """Explain an error at a file or directory of the cache or the state.

    `path` defaults to the one in the error. A full disk is usually caused by others and transient;
    everything else is the node's fault.
    """
    make = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else CacheUnusable
    what = path or str(error.filename or "the cache")
    return make(f"{what} cannot {cannot}", why=error.strerror or str(error), do=do)


def foreseen(error: Exception) -> HpcimgError:
    """Return an error as an HpcimgError: an unexpected one, except an OSError, is a bug."""
    if isinstance(error, HpcimgError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error)
    return Bug("hpcimg failed on this node", why=f"{type(error).__name__}: {error}")


@contextmanager
def explained() -> Iterator[None]:
    """Raise any OSError as `from_os_error` explains it. Also works as a decorator."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error) from error


def from_dict(fields: dict[str, object]) -> HpcimgError:
    """Recreate the error that `HpcimgError.to_dict` described in another process."""
    known = {cls.__name__: cls for cls in _subclasses(HpcimgError)}
    make = known.get(str(fields.get("error")), Bug)
    error = make(
        str(fields.get("what", "")), why=str(fields.get("why", "")), do=str(fields.get("do", ""))
    )
    error.login = str(fields.get("login", ""))
    with suppress(ValueError):  # the server gave no time
        error.retry_after_s = max(0.0, float(str(fields.get("retry_after_s"))))
    return error


def _subclasses(cls: type[HpcimgError]) -> list[type[HpcimgError]]:
    return [cls] + [deeper for sub in cls.__subclasses__() for deeper in _subclasses(sub)]
