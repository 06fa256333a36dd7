"""What the configuration of an OCI image says: OCI image specification, config.md."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from hpcimg.errors import NotAnImage, WrongArchitecture
from hpcimg.image.architecture import go_name, platform_of, runs_here

_MAX_BYTES = 8 << 20
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Wrong(ValueError):
    """What is wrong with a configuration."""


class OciConfig(NamedTuple):
    """What a runtime needs of it. No text holds a zero byte."""

    text: str
    variables: tuple[tuple[str, str], ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    working_dir: str
    labels: dict[str, str]


def parse(text: str, uri: str) -> OciConfig:
    """Read the text of an image's configuration. Raises NotAnImage, WrongArchitecture.

    Variables whose names no shell takes are left out.
    """
    try:
        if len(text.encode()) > _MAX_BYTES:
            raise _Wrong("it is too large")
        whole = json.loads(text)
        found = _read(whole, text)
    except (ValueError, RecursionError) as error:
        why = "it is no JSON text" if isinstance(error, json.JSONDecodeError) else str(error)
        raise NotAnImage(
            f"the configuration of {uri} cannot be used",
            why=why,
            do="Build the image again, or use another one.",
        ) from None
    platform = platform_of(whole)
    if platform.system != "linux":
        raise NotAnImage(f"{uri} is an image for {platform.system}, not for Linux")
    if not runs_here(platform):
        raise WrongArchitecture(
            f"{uri} is an image for another processor",
            why=f"it was built for {platform}, this machine is {go_name()}",
        )
    return found


def _read(whole: Any, text: str) -> OciConfig:
    said = whole.get("config") if isinstance(whole, dict) else None
    if not isinstance(whole, dict) or not isinstance(said, dict | None):
        raise _Wrong("it is not written as the OCI image specification says")
    said = said or {}
    variables = (entry.partition("=") for entry in _texts(said, "Env"))
    labels = said.get("Labels") or {}
    if not isinstance(labels, dict):
        raise _Wrong("Labels is no object")
    return OciConfig(
        text=text,
        variables=tuple(
            (name, value) for name, equals, value in variables if equals and _is_name(name)
        ),
        entrypoint=_texts(said, "Entrypoint"),
        command=_texts(said, "Cmd"),
        working_dir=_text(said.get("WorkingDir") or "", "WorkingDir"),
        labels={_text(name, "Labels"): _text(value, "Labels") for name, value in labels.items()},
    )


def _texts(said: dict[str, Any], key: str) -> tuple[str, ...]:
    values = said.get(key) or []
    if not isinstance(values, list):
        raise _Wrong(f"{key} is no list")
    return tuple(_text(value, key) for value in values)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{key} holds something else than text")
    if "\0" in value:
        raise _Wrong(f"{key} holds a zero byte")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"{key} holds what is no Unicode text") from None
    return value


def _is_name(name: str) -> bool:
    return bool(_VARIABLE.fullmatch(name))
