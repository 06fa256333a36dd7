"""docker-archive: : the output of `docker save`, podman, skopeo, crane and kaniko.

manifest.json names the config and the layers of each image by their files in the archive. Other
content, of older and newer formats, is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcimg.errors import BadReference
from hpcimg.fetch.contract import Blob, Offer, text_of
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.image import ociconfig
from hpcimg.reference import Reference, parse
from hpcimg.sources.oci import manifests
from hpcimg.sources.oci.imagefiles import ImageFiles, choose, several
from hpcimg.sources.oci.manifests import is_digest

_TAGS_MAX = 1000


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an image from an archive; see `hpcimg.sources`."""
    path, _, name = reference.rest.partition(":")
    with ImageFiles(path, reference.uri, archive=True) as files:
        if files.look == validator:
            return True
        _fetch(files, name, sink)
        files.check_unwritten()
    return False


def _fetch(files: ImageFiles, name: str, sink: Sink) -> None:
    image = _image(files, name)
    config = ociconfig.parse(text_of(files.read(str(image.get("Config")))), files.uri)
    names = image.get("Layers")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise files.broken("its manifest names no layers")
    manifests.check_number(len(names), files.uri)
    if len(config.diff_ids) != len(names) or not all(map(is_digest, config.diff_ids)):
        raise files.broken("its config does not state the digests of its layers")
    layers = tuple(
        # Neither the name of a file nor the digest of its uncompressed content identifies it.
        Blob(files.sha256(layer), files.size(layer))
        for layer in names
    )
    offer = Offer(files.look, config=config.text, layers=layers)
    sinks = sink.offer_layers(offer)
    for number in sorted(sinks, reverse=True):  # as they are converted
        what = f"layer {number + 1} of {len(names)}"
        files.copy(names[number], layers[number], sinks[number], what=what)
        sinks[number].complete()


def _image(files: ImageFiles, name: str) -> dict[str, Any]:
    """Return the entry of the requested image in manifest.json."""
    if not files.has("manifest.json"):
        if files.has("index.json"):
            raise files.broken("it is an OCI archive", do="Write oci-archive:PATH.")
        if files.has("repositories"):
            raise files.broken("it was written by Docker before 1.10")
    listed = files.read_json("manifest.json")
    images = [image for image in (listed if isinstance(listed, list) else []) if _is_image(image)]
    tags = [tuple(map(str, image.get("RepoTags") or ())) for image in images]
    numbers = choose([(*each, *_short(each, name)) for each in tags], name, files.uri)
    if len(numbers) > 1:
        raise several(tags, files.uri)
    image: dict[str, Any] = images[numbers[0]]
    return image


def _is_image(image: object) -> bool:
    tags = image.get("RepoTags") if isinstance(image, dict) else 0
    return tags is None or (isinstance(tags, list) and len(tags) <= _TAGS_MAX)


def _short(tags: Sequence[str], name: str) -> list[str]:
    """Return the name if it is another spelling of a tag: Docker omits what skopeo writes.

    That is the host and the tag "latest".
    """
    return [name] if _in_full(name) in map(_in_full, tags) else []


def _in_full(name: str) -> str:
    try:
        return parse(f"docker://{name}").rest if name else ""
    except BadReference:
        return name
