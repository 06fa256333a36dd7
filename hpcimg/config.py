"""The configuration: every key, its default, and where its value came from.

INI files as `configparser` reads them, without interpolation: the main file,
then conf.d/*.conf beside it in order of their names; later files win. An
unknown section or key is an error that names file, section and key.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hpcimg import conffiles
from hpcimg.errors import ConfigError
from hpcimg.units import parse_duration, parse_percent, parse_size


class Size(NamedTuple):
    """A size in bytes, or a percentage of the file system it is about."""

    size_bytes: int = 0
    percent: float = 0.0

    def of(self, total_bytes: int) -> int:
        """Return the size in bytes on a file system of that size."""
        return self.size_bytes or int(total_bytes * self.percent / 100)


@dataclasses.dataclass(frozen=True)
class Registry:
    """What the site says about one registry or web host."""

    insecure: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """All values, ready to use. Times are in seconds."""

    cache_path: str
    max_size: Size
    high_watermark: float
    low_watermark: float
    min_free: Size
    min_age_s: float
    state_path: str
    deadline_s: float
    tag_ttl_s: float
    connect_timeout_s: float
    stall_timeout_s: float
    account: str
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    max_image_size: int
    comment_from: str
    log_to: str
    registries: Mapping[str, Registry]
    aliases: Mapping[str, str]
    fingerprint: str

    def registry(self, host: str) -> Registry:
        """Return what is said about a host (with its port, if the reference has one)."""
        return self.registries.get(host, Registry())


class Key(NamedTuple):
    """One key of the configuration: how it is read, what it is when it is not set."""

    section: str
    name: str
    field: str
    default: str
    read: Callable[[str], Any]
    about: str


class Setting(NamedTuple):
    """One key as `hpcimg config` shows it: its value as written, and where it was set."""

    section: str
    name: str
    value: str
    origin: str
    about: str


def load(main: str | None = None) -> Config:
    """Read and check the configuration. Raises ConfigError."""
    files = _read_files(main or conffiles.main_file())
    settings, registries, aliases = _collect(files)
    values = {}
    for key, setting in zip(KEYS, settings, strict=True):
        try:
            values[key.field] = key.read(setting.value)
        except ValueError as error:
            raise _wrong(setting.origin, key.section, key.name, str(error)) from None
    config = Config(
        **values,
        registries=registries,
        aliases=aliases,
        fingerprint=conffiles.fingerprint(files),
    )
    if not config.low_watermark <= config.high_watermark:
        raise ConfigError("[cache] low_watermark is above high_watermark")
    return config


def settings(main: str | None = None) -> list[Setting]:
    """Return every key with its value and origin, the site's own sections last."""
    files = _read_files(main or conffiles.main_file())
    listed, _, _ = _collect(files)
    for path, parser in _parse(files):
        for section in parser.sections():
            if section == "alias" or section.startswith("registry "):
                for name, value in parser[section].items():
                    listed.append(Setting(section, name, value, path, ""))
    return listed


def _read_files(main: str) -> list[tuple[str, str]]:
    try:
        return conffiles.read_files(main)
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read",
            why=error.strerror or "",
            do="Create it, or correct HPCIMG_CONF.",
        ) from None


def _parse(files: list[tuple[str, str]]) -> list[tuple[str, configparser.ConfigParser]]:
    parsers = []
    for path, text in files:
        parser = configparser.ConfigParser(
            interpolation=None, delimiters=("=",), default_section="", empty_lines_in_values=False
        )
        # Names in [alias] and hosts keep their case; known keys are lower case.
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            parser.read_string(text, source=path)
        except configparser.Error as error:
            raise ConfigError(" ".join(str(error).split())) from None
        parsers.append((path, parser))
    return parsers


def _collect(
    files: list[tuple[str, str]],
) -> tuple[list[Setting], dict[str, Registry], dict[str, str]]:
    known = {(key.section, key.name): key for key in KEYS}
    found: dict[tuple[str, str], Setting] = {
        at: Setting(*at, key.default, "default", key.about) for at, key in known.items()
    }
    registries: dict[str, Registry] = {}
    aliases: dict[str, str] = {}
    for (path, parser), file in zip(_parse(files), files, strict=True):
        for at in _READ_RAW:
            if parser.get(*at, fallback="") != conffiles.raw_value([file], *at):
                raise _wrong(path, *at, "write the key at the beginning of one line of its own")
        for section in parser.sections():
            for name, value in parser[section].items():
                if section == "alias":
                    aliases[name] = value
                elif section.startswith("registry "):
                    host = section.removeprefix("registry ").strip()
                    registries[host] = _registry(registries.get(host), path, section, name, value)
                elif (section, name) in known:
                    found[section, name] = found[section, name]._replace(value=value, origin=path)
                else:
                    raise _unknown(path, section, name)
            if section not in _SECTIONS and not section.startswith("registry "):
                raise _unknown(path, section, "")
    return list(found.values()), registries, aliases


def _registry(before: Registry | None, path: str, section: str, name: str, value: str) -> Registry:
    readers = {"insecure": _boolean}
    if name not in readers:
        raise _unknown(path, section, name)
    try:
        return dataclasses.replace(before or Registry(), **{name: readers[name](value)})
    except ValueError as error:
        raise _wrong(path, section, name, str(error)) from None


def _unknown(path: str, section: str, name: str) -> ConfigError:
    if section not in _SECTIONS and not section.startswith("registry "):
        known = ", ".join(f"[{s}]" for s in _SECTIONS) + ", [registry HOST]"
        return ConfigError(f"{path}: unknown section [{section}]", do=f"Known are {known}.")
    known = ", ".join(key.name for key in KEYS if key.section == section) or "insecure"
    return ConfigError(
        f"{path}: unknown key {name!r} in [{section}]", do=f"Known there are {known}."
    )


def _wrong(origin: str, section: str, name: str, why: str) -> ConfigError:
    return ConfigError(f"{origin}: [{section}] {name}", why=why)


def _path(text: str) -> str:
    path = text.replace("%n", conffiles.node_name())
    # Paths go unquoted into task lines, JSON and colon-separated lists.
    if not path.startswith("/") or any(not c.isprintable() or c in ":\"'\\ " for c in path):
        raise ValueError(f"{text!r} is not an absolute path without spaces, quotes and colons")
    if path != os.path.normpath(path):
        raise ValueError(f"{text!r} is not written plainly; write {os.path.normpath(path)}")
    return path


def _size(text: str) -> Size:
    if text.endswith("%"):
        return Size(percent=parse_percent(text))
    return Size(size_bytes=parse_size(text))


def _boolean(text: str) -> bool:
    words = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither yes nor no")
    return words[text.lower()]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def _log_target(text: str) -> str:
    return text if text in ("syslog", "stderr") else _path(text)


KEYS = (
    Key("cache", "path", "cache_path", conffiles.DEFAULT_CACHE, _path,
        "the cache, on one node-local file system; %n is the node's name"),
    Key("cache", "max_size", "max_size", "80%", _size,
        "all images together, 200G or a percentage of the file system"),
    Key("cache", "high_watermark", "high_watermark", "90%", parse_percent,
        "eviction begins above this part of max_size"),
    Key("cache", "low_watermark", "low_watermark", "80%", parse_percent,
        "eviction ends below this part of max_size"),
    Key("cache", "min_free", "min_free", "5%", _size,
        "what stays free on the file system for others"),
    Key("cache", "min_age", "min_age_s", "2m", parse_duration,
        "an image unused for less than this is not evicted in the epilog"),
    Key("state", "path", "state_path", conffiles.DEFAULT_STATE, _path,
        "jobs, leases and downloads under way, on a tmpfs; %n likewise"),
    Key("stage", "deadline", "deadline_s", "540s", parse_duration,
        "the longest a job is held; keep it below Slurm's timers"),
    Key("stage", "tag_ttl", "tag_ttl_s", "1h", parse_duration,
        "how long a tag is taken at its word before the server is asked again"),
    Key("stage", "connect_timeout", "connect_timeout_s", "10s", parse_duration,
        "the longest wait for a connection"),
    Key("stage", "stall_timeout", "stall_timeout_s", "60s", parse_duration,
        "the longest silence within a download"),
    Key("stage", "account", "account", "", str,
        "the unprivileged account that fetches; default hpcimg, or else nobody"),
    Key("policy", "allow", "allow", "*", _words,
        "patterns of references that may be staged"),
    Key("policy", "deny", "deny", "", _words,
        "patterns of references that may not, whatever allow says"),
    Key("policy", "max_image_size", "max_image_size", "0", parse_size,
        "the largest image; 0 is no limit but the cache's"),
    Key("slurm", "comment", "comment_from", "environment", _one_of("environment", "query"),
        "query: ask Slurm where it does not pass the comment to Prolog (before 22.05)"),
    Key("log", "to", "log_to", "syslog", _log_target,
        "syslog, stderr, or the path of a file"),
)  # fmt: skip
_SECTIONS = (*dict.fromkeys(key.section for key in KEYS), "alias")
# Read from the raw text on the way to a hit, or by the task prolog's shell.
_READ_RAW = (("cache", "path"), ("state", "path"), ("slurm", "comment"))
