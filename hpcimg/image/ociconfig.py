"""What the configuration of an OCI image says: OCI image specification, config.md."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from hpcimg import jsontext
from hpcimg.errors import NotAnImage, WrongArchitecture
from hpcimg.image.architecture import Platform, go_name, platform_of, runs_here

_MAX_BYTES = 1 << 20  # it is passed between processes; real ones have a few KiB
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Wrong(ValueError):
    """What is wrong with a configuration."""


class OciConfig(NamedTuple):
    """What a runtime needs of it. No text holds a zero byte.

    `diff_ids` are the digests of the layers' archives, the lowest first; none where it does not
    say any. Names of variables may be such as no shell takes.
    """

    text: str
    diff_ids: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    working_dir: str
    labels: dict[str, str]


def parse(text: str, uri: str) -> OciConfig:
    """Read the configuration of an image for this machine. Raises NotAnImage, WrongArchitecture."""
    whole = _object(text, uri)
    try:
        found = _read(whole, text)
    except _Wrong as error:
        raise _unusable(uri, error) from None
    platform = platform_of(whole)
    if platform.system != "linux":
        raise NotAnImage(f"{uri} is an image for {platform.system}, not for Linux")
    if not runs_here(platform):
        raise WrongArchitecture(
            f"{uri} is an image for another processor",
            why=f"it was built for {platform}, this machine is {go_name()}",
        )
    return found


def platform_in(text: str, uri: str) -> Platform:
    """Return the platform that a configuration states. Raises NotAnImage."""
    return platform_of(_object(text, uri))


def _object(text: str, uri: str) -> dict[str, Any]:
    try:
        if len(text) > _MAX_BYTES:
            raise _Wrong("it is too large")
        return jsontext.read_object(text)
    except ValueError as error:
        raise _unusable(uri, error) from None


def _unusable(uri: str, error: ValueError) -> NotAnImage:
    return NotAnImage(
        f"the configuration of {uri} cannot be used",
        why=str(error),
        do="Build the image again, or use another one.",
    )


def _read(whole: dict[str, Any], text: str) -> OciConfig:
    said = whole.get("config")
    if not isinstance(said, dict | None):
        raise _Wrong("it is not written as the OCI image specification says")
    for key in ("os", "architecture", "variant"):
        _text("" if whole.get(key) is None else whole[key], key)
    said = said or {}
    rootfs = whole.get("rootfs") or {}
    labels = said.get("Labels") or {}
    if not isinstance(rootfs, dict):
        raise _Wrong("rootfs is no object")
    if not isinstance(labels, dict):
        raise _Wrong("Labels is no object")
    variables = (entry.partition("=") for entry in _texts(said, "Env"))
    entrypoint = _texts(said, "Entrypoint")
    return OciConfig(
        text=text,
        diff_ids=_texts(rootfs, "diff_ids"),
        variables=tuple((name, value) for name, equals, value in variables if name and equals),
        # So Docker has it: an empty one takes away that of the image below.
        entrypoint=() if entrypoint == ("",) else entrypoint,
        command=_texts(said, "Cmd"),
        working_dir=_text(said.get("WorkingDir") or "", "WorkingDir"),
        labels={_shown(name): _shown(value) for name, value in labels.items()},
    )


def _shown(value: object) -> str:
    """Return text for a label, which is only shown: Docker takes null for nothing."""
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value)
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)


def _texts(said: dict[str, Any], key: str) -> tuple[str, ...]:
    values = said.get(key) or []
    if isinstance(values, str) and key in ("Entrypoint", "Cmd"):
        values = [values]  # as Docker reads it
    if not isinstance(values, list):
        raise _Wrong(f"{key} is no list")
    # null is empty text, as Go reads it.
    return tuple(_text("" if value is None else value, key) for value in values)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{key} holds something else than text")
    if "\0" in value:
        raise _Wrong(f"{key} holds a zero byte")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"{key} is not valid Unicode") from None
    return value
