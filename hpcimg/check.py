"""What would happen to a reference in a job, without fetching it and without a cache.

The source runs in this process, as the calling user, and is told that its offer is declined: so the
answer comes from the same code as the beginning of a fetch.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hpcimg import imagename, jsontext, origin, schemes
from hpcimg.cache import policy as limits
from hpcimg.config.keys import Config
from hpcimg.convert import pick_format
from hpcimg.errors import (
    ANOTHER_LOGIN,
    NO_LOGIN,
    ConfigError,
    Forbidden,
    HpcimgError,
    MissingTool,
    Unreachable,
)
from hpcimg.fetch.contract import Offer, bytes_of
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import DeclinedOffer, Sink
from hpcimg.image import formats, ociconfig
from hpcimg.image.architecture import platform_of
from hpcimg.reference import Reference, told
from hpcimg.site import policy, services
from hpcimg.site.services import Credentials
from hpcimg.sources import files
from hpcimg.worker import accounts, privileges

log = logging.getLogger(__name__)
_TRIES = 2
_LIMIT_S = 60.0
_NO_PLATFORM = "unknown"


class Checked(NamedTuple):
    """The result for one reference; `error` says why it would fail, None if it would not.

    `uri` is the canonical form. `digest` is that of what the reference names, "" if the source has
    none; `pinned` is a reference with that digest. `size_bytes` is the download size, None if
    unknown. `processors` are those that images exist for. `format` is what a job would get, "" if
    only the content can tell. `notes` are sentences.
    """

    uri: str
    error: HpcimgError | None = None
    digest: str = ""
    pinned: str = ""
    size_bytes: int | None = None
    layers: int = 0
    processors: tuple[str, ...] = ()
    format: str = ""
    notes: tuple[str, ...] = ()


class _Question(NamedTuple):
    """One reference to ask about; the settings have no deadline yet."""

    wanted: Reference
    settings: Settings
    notes: tuple[str, ...]


def check(config: Config, texts: Sequence[str]) -> list[Checked]:
    """Check references as they were written. Raises ConfigError.

    Root becomes the unprivileged account for good before the first server is contacted.
    """
    account = accounts.unprivileged(config.account)
    asked = [_prepare(config, text, as_user=account is None) for text in texts]
    privileges.become(account)
    return [each if isinstance(each, Checked) else _ask(config, each) for each in asked]


def _prepare(config: Config, text: str, *, as_user: bool) -> _Question | Checked:
    """Apply a node's configuration to a reference."""
    try:
        wanted = policy.parse(config, text)
        service = services.find(config, wanted)
    except ConfigError:
        raise
    except HpcimgError as error:
        return Checked(told(text), error)
    scheme = schemes.of(wanted.scheme)
    importlib.import_module(scheme.module)

    def settings(site: Credentials) -> Settings:
        return origin.settings(
            config, wanted, service, tries=_TRIES, site=site,
            as_user=scheme.as_user and as_user,
        )  # fmt: skip

    try:
        return _Question(wanted, settings("all"), ())
    except ConfigError as error:
        if not as_user:
            raise
        # They are usually readable by root alone.
        note = f"A node may use the site's login, which is not available here: {error.brief}."
        return _Question(wanted, settings("none"), (note,))


def _ask(config: Config, question: _Question) -> Checked:
    wanted, notes = question.wanted, question.notes
    deadline = time.monotonic() + min(_LIMIT_S, config.deadline_s)
    question = question._replace(settings=question.settings._replace(deadline=deadline))
    if config.verify != "none":
        notes += ("Whether the site trusts it is checked after it was fetched ([policy] verify).",)
    try:
        offer = _offer_with_login(question)
        _check_size(config, offer, wanted.uri)
        image_format, processors = _kind(config, offer, wanted)
    except HpcimgError as error:
        return Checked(wanted.uri, error, notes=notes)
    except ModuleNotFoundError as error:
        return Checked(wanted.uri, MissingTool.of_package(error), notes=notes)
    except OSError as error:
        why = error.strerror or str(error)
        unread = Unreachable(f"{wanted.uri} could not be read", why=why)
        return Checked(wanted.uri, unread, notes=notes)
    if not image_format:
        notes += (
            "Whether it is an image, and for which processor, is known only after it was fetched.",
        )
    digest = offer.sha256
    if offer.manifests:  # the first is what the reference names
        digest = hashlib.sha256(bytes_of(offer.manifests[0])).hexdigest()
    sizes = [layer.size_bytes for layer in offer.layers]
    return Checked(
        wanted.uri,
        digest=f"sha256:{digest}" if digest else "",
        pinned=_pinned(wanted, digest),
        size_bytes=sum(sizes) if sizes else offer.size_bytes,
        layers=len(sizes),
        processors=processors,
        format=image_format,
        notes=notes,
    )


def _offer_with_login(question: _Question) -> Offer:
    """Return what the source offers; retry once with a login if that may help."""
    try:
        return _offer(question.wanted, question.settings)
    except HpcimgError as error:
        if not schemes.of(question.wanted.scheme).in_registry:
            raise
        if not isinstance(error, Forbidden) and error.login != ANOTHER_LOGIN:
            raise
        try:
            return _offer(question.wanted, question.settings._replace(login_needed=True))
        except HpcimgError as second:
            raise (error if second.login == NO_LOGIN else second) from None


def _offer(wanted: Reference, settings: Settings) -> Offer:
    source = importlib.import_module(schemes.of(wanted.scheme).module)
    listener = _Listener()
    try:
        source.fetch(wanted, Sink(-1, listener), validator="", settings=settings)
    except DeclinedOffer:
        assert listener.offered
        return listener.offered
    raise AssertionError("a source fetched what it had not offered")


class _Listener:
    """A `hpcimg.fetch.sink.Parent` that records the offer and declines it."""

    offered: Offer | None = None

    def offer(self, offer: Offer) -> Mapping[int, int] | None:
        self.offered = offer
        return None

    def digest(self, layer: int | None) -> str:
        raise AssertionError(f"nothing was fetched, and layer {layer} has no digest")

    def moved(self, layer: int | None, done: int, total: int | None) -> None:
        pass

    def rewound(self, layer: int | None) -> None:
        pass

    def complete(self, layer: int) -> None:
        raise AssertionError(f"nothing was fetched, and layer {layer} is not complete")

    def retrying(self, why: str, wait_s: float) -> None:
        log.warning("next try in %.1f s: %s", wait_s, why)


def _check_size(config: Config, offer: Offer, uri: str) -> None:
    sizes = [layer.size_bytes for layer in offer.layers] or [offer.size_bytes or 0]
    limits.check_allowed(config.max_image_size, sum(sizes), what=uri)


def _kind(config: Config, offer: Offer, wanted: Reference) -> tuple[str, tuple[str, ...]]:
    """Return the format that a job would get, and the processors that images exist for.

    Raises HpcimgError if the offer shows that it is not an image for this machine.
    """
    if offer.layers:
        ociconfig.parse(offer.config, wanted.uri)
        found = dict.fromkeys(_platforms([*offer.manifests, offer.config]))
        return pick_format(config.format), tuple(found)
    if wanted.scheme == "file":
        descriptor = files.open_file(wanted.rest)
        try:
            image = formats.identify(descriptor, wanted.uri)
        finally:
            os.close(descriptor)
        return image.extension, (image.architecture,) if image.architecture else ()
    return ("sif" if offer.manifests else ""), tuple(dict.fromkeys(_platforms(offer.manifests)))


def _platforms(texts: Sequence[str]) -> Iterator[str]:
    """Yield the platforms named in indexes and in an image's configuration."""
    for text in texts:
        try:
            content = jsontext.read_object(bytes_of(text))
        except ValueError:  # the source has already read what matters
            continue
        listed = content.get("manifests", [{"platform": content}])
        for entry in listed if isinstance(listed, list) else []:
            each = entry.get("platform") if isinstance(entry, dict) else None
            if isinstance(each, dict) and each.get("architecture"):
                platform = platform_of(each)
                if platform.architecture != _NO_PLATFORM:
                    yield str(platform)


def _pinned(wanted: Reference, digest: str) -> str:
    if not schemes.of(wanted.scheme).in_registry or not digest:
        return ""
    name = imagename.parse(wanted.rest)
    return f"{wanted.scheme}://{name.host}/{name.repository}@sha256:{digest}"
