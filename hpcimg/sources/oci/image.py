"""docker:// and oras:// : the content of a tag in an OCI registry, a SIF file or layers.

The media types in the manifest decide which, not the scheme.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from hpcimg import imagename
from hpcimg.errors import NO_LOGIN, Forbidden, NotFound
from hpcimg.fetch.contract import Blob, Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.pace import Pace
from hpcimg.http.retry import wait_first
from hpcimg.http.session import open_session
from hpcimg.image import ociconfig
from hpcimg.reference import Reference
from hpcimg.sources.oci import indexes, manifests
from hpcimg.sources.oci.manifests import Manifest
from hpcimg.sources.oci.registry import Registry

_AT_ONCE = 4
_SMALL_BYTES = 4 << 20
_LOOK_S = 0.5


class Content(indexes.Content, Protocol):
    """Something to read manifests and blobs from: a registry, or a layout on disk."""

    @property
    def via(self) -> str:
        """Where it comes from, as in an Offer."""

    def manifest(self, known: str = "") -> Manifest | None:
        """Return the image's manifest; None if it is still the one that `known` names."""

    def download(self, blob: Blob, sink: Sink) -> bool:
        """Download a blob into a sink."""


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an image from an OCI registry; see `hpcimg.sources`."""
    name = imagename.parse(reference.rest)
    with open_session(settings) as session:
        registry = Registry(session, name, sink, settings, uri=reference.uri)
        if settings.login_needed:
            if not registry.has_login():
                nobody = Forbidden(f"{reference.uri} may not be read without a login")
                nobody.login = NO_LOGIN
                raise nobody
            registry.log_in()
        if settings.wait_s:
            wait_first(sink, settings.wait_s, f"{name.host} limits anonymous requests")
        return fetch_from(registry, sink, uri=reference.uri, validator=validator)


def fetch_from(
    content: Content,
    sink: Sink,
    *,
    uri: str,
    validator: str = "",
    known_as: str = "",
    at_once: int = _AT_ONCE,
) -> bool:
    """Fetch the image for this machine, up to `at_once` layers in parallel.

    `known_as` is the validator to keep if it is not the manifest's digest.
    """
    found = content.manifest(validator)
    if found is None:
        return True
    known_as = known_as or found.digest
    manifest = indexes.for_this_machine(content, found, uri)
    manifests.check_texts(manifest, uri)
    sif = manifests.sif_layer(manifest)
    if sif:
        sink.offer(
            Offer(known_as, sif.size_bytes, sif.sha256, manifests=manifest.texts, via=content.via)
        )
        return content.download(sif, sink)
    layers = manifests.layers(manifest, uri)
    config = content.read_blob(manifests.config_digest(manifest, uri))
    ociconfig.parse(config, uri)
    sinks = sink.offer_layers(
        Offer(known_as, config=config, layers=layers, manifests=manifest.texts, via=content.via)
    )
    # As they are converted, the highest first. But where several arrive at once the largest has
    # the most time, so that it is not left to arrive alone at the end.
    order = sorted(sinks, reverse=True)
    if order and at_once > 1:
        largest = max(order, key=lambda number: layers[number].size_bytes)
        order.remove(largest)
        order.insert(0, largest)

    def bring(number: int) -> None:
        try:
            content.download(layers[number], sinks[number])
        except NotFound as error:
            error.why += manifests.why_missing(manifest, layers[number])
            raise
        sinks[number].complete()

    pool, pace = ThreadPoolExecutor(at_once), Pace(at_once, time.monotonic())
    running: set[Future[None]] = set()
    try:
        while order or running:
            # Small ones are a matter of answering times.
            while order and len(running) < (
                at_once if layers[order[0]].size_bytes < _SMALL_BYTES else pace.at_once
            ):
                running.add(pool.submit(bring, order.pop(0)))
            look_s = None if pace.settled else _LOOK_S
            done, running = wait(running, look_s, FIRST_COMPLETED)
            for ended in done:
                ended.result()
            pace.look(time.monotonic(), sum(each.position for each in sinks.values()))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return False
