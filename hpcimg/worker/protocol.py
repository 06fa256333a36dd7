"""The messages between a worker and its parent.

Each message is one line: a JSON list of the message's name and its fields. A compromised worker may
send anything, so each field is checked for its type, numbers for their range, and texts that are
shown for their length. `hpcimg.cache.identity` checks whether an offer is consistent.
"""

from __future__ import annotations

import functools
import json
import math
import types
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from hpcimg.fetch.contract import Declined, Offer, Unchanged
from hpcimg.fetch.settings import Settings
from hpcimg.reference import Reference
from hpcimg.worker.accounts import Account

# To the worker


class Fetch(NamedTuple):
    """The order to fetch an image into the file that comes with it.

    `validator` is as in `hpcimg.fetch.contract.Way.fetch`.
    """

    reference: Reference
    settings: Settings
    validator: str

    @property
    def uri(self) -> str:
        return self.reference.uri


class Convert(NamedTuple):
    """The order to convert layers; it comes with the output, and each layer later in a Layer.

    The fields are those of `hpcimg.convert.image.Work`.
    """

    uri: str
    config: str
    sizes: tuple[int, ...]
    directory: str
    format: str
    compression: str
    max_unpacked_bytes: int


class Verify(NamedTuple):
    """The order to verify the image file that comes with it.

    The fields are those of `hpcimg.image.verify.Work`.
    """

    uri: str
    how: str
    keyring: str
    source: str
    directory: str


class Share(NamedTuple):
    """The order to bring an image together with the other nodes of a job.

    The socket of the signing process comes with it. `wanted` identifies the image; `job`, `node`
    and `nodes` are as in `hpcimg.fetch.contract.Request`; `directory` is empty. Times are in
    seconds, `rate` is in bytes per second.
    """

    uri: str
    wanted: str
    job: str
    node: str
    nodes: tuple[str, ...]
    port: int
    networks: tuple[str, ...]
    directory: str
    wait_s: float
    patience_s: float
    linger_s: float
    rate: int


Order = Fetch | Convert | Verify | Share


class Start(NamedTuple):
    """The first message, with the files of the order.

    It names the account to become (None: stay the same), and the maximum size of an image.
    """

    account: Account | None
    image_bytes: int
    order: Order


class Wanted(NamedTuple):
    """The answer to an accepted offer: the layers whose files come with it."""

    layers: tuple[int, ...]


class Layer(NamedTuple):
    """A layer to convert, whose file comes with this. It may be sent at any time."""

    number: int


class Digest(NamedTuple):
    """The answer to DigestWanted."""

    sha256: str


class Advance(NamedTuple):
    """How far this node's own fetch is, to one that leads."""

    phase: str
    done: int


class Published(NamedTuple):
    """The image is on this node. Its file is sent along, open for reading."""

    size_bytes: int


# From the worker. `layer` is None if the image is a single file.


class Offering(NamedTuple):
    """The source's announcement. The answer is Wanted or Declined."""

    offer: Offer


class DigestWanted(NamedTuple):
    """A request for the sha256 of a file's content. The answer is Digest."""

    layer: int | None


class Moved(NamedTuple):
    """The number of bytes in the file, and the total if it is known."""

    layer: int | None
    done: int
    total: int | None


class Rewound(NamedTuple):
    """The file is empty again."""

    layer: int | None


class Complete(NamedTuple):
    """The file of a layer is complete, and closed here: it is not mentioned again."""

    layer: int


class Retrying(NamedTuple):
    """An attempt failed; the next one begins after `wait_s` seconds."""

    why: str
    wait_s: float


class Converted(NamedTuple):
    """The progress of a conversion, as in `hpcimg.fetch.contract.Converting`."""

    done: int
    total: int | None
    beside: int


class Leading(NamedTuple):
    """This node has to fetch the image for the others. Advance and Published follow."""


class Awaiting(NamedTuple):
    """Another node fetches the image; this is its progress."""

    phase: str
    done: int


class Found(NamedTuple):
    """Another node has the image; its description goes to root by the signing process.

    The answer is Wanted, with a file for the image, or Declined; Published follows either.
    """


class Done(NamedTuple):
    """The order is carried out."""


class Failed(NamedTuple):
    """The error that ends the work, as in `HpcimgError.to_dict`."""

    error: str
    what: str
    why: str
    do: str
    traceback: str = ""
    login: str = ""
    retry_after_s: str = ""


Answer = Wanted | Declined | Layer | Digest | Advance | Published
Report = (
    Offering | DigestWanted | Moved | Rewound | Complete | Retrying | Converted | Done | Unchanged
    | Declined | Leading | Awaiting | Found | Failed
)  # fmt: skip
Message = Start | Answer | Report
_ORDERS = (Fetch, Convert, Verify, Share)
_NUMBER_MAX = 1 << 53  # as exact in JSON as elsewhere; bytes, counts, uids
_TEXT_MAX = 4000  # characters


def encode(message: Message) -> bytes:
    """Return the line for a message."""
    return json.dumps(_named(message)).encode() + b"\n"


def to_worker(line: bytes) -> Start | Answer:
    """Parse a message for a worker. Raises ValueError."""
    message: Start | Answer = _build(Start | Answer, json.loads(line))
    return message


def from_worker(line: bytes) -> Report:
    """Parse a message from a worker. Raises ValueError if it is not one of this protocol."""
    report: Report = _build(Report, json.loads(line))
    match report:
        case Failed():
            return Failed(*(text[:_TEXT_MAX] for text in report))
        case Retrying(why, wait_s):
            return Retrying(why[:_TEXT_MAX], wait_s)
        case Awaiting(phase, done):
            return Awaiting(phase[:_TEXT_MAX], done)
    return report


def _named(message: Message | Order) -> list[object]:
    fields = (_named(field) if isinstance(field, _ORDERS) else field for field in message)
    return [type(message).__name__, *fields]


def _build(hint: Any, value: Any) -> Any:
    """Convert a JSON value to the type of a field. Raises ValueError."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not types.NoneType]
        if value is None and len(kinds) < len(inner):
            return None
        if len(kinds) == 1:
            return _build(kinds[0], value)
        name, *fields = _list(value) or [""]
        for kind in kinds:
            if kind.__name__ == name:
                return _build(kind, fields)
        raise ValueError("no such message")
    if origin is tuple:
        return tuple(_build(inner[0], each) for each in _list(value))
    if isinstance(hint, type) and issubclass(hint, tuple):
        hints, values = _fields(hint), _list(value)
        if len(values) != len(hints):
            raise ValueError(f"these are not the fields of {hint.__name__}")
        return hint(*(_build(*pair) for pair in zip(hints, values, strict=True)))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"no {hint.__name__}")
    if hint in (int, float) and not (math.isfinite(value) and 0 <= value <= _NUMBER_MAX):
        raise ValueError("a number out of range")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("no list")  # noqa: TRY004
    return value


@functools.cache
def _fields(kind: type) -> tuple[Any, ...]:
    return tuple(get_type_hints(kind).values())
