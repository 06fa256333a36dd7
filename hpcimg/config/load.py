"""Reading the configuration: the values, and where each was set.

INI files as in `configparser`, without interpolation: the main file, then conf.d/*.conf next to it
in alphabetical order; later files win. An unknown section or key is an error that names file,
section and key.
"""

from __future__ import annotations

import configparser
import re
from typing import Any, NamedTuple

from hpcimg import dockerhub, spelling
from hpcimg.config import files as conffiles
from hpcimg.config.keys import KEYS, NAMED, READ_RAW, SECTIONS, Config, Registry
from hpcimg.errors import ConfigError
from hpcimg.schemes import SCHEMES

_SCHEME = re.compile(r"[a-z][a-z0-9]*")


class Setting(NamedTuple):
    """One key for `hpcimg config`: its value as written, and where it was set."""

    section: str
    name: str
    value: str
    origin: str
    about: str


def load(main: str | None = None) -> Config:
    """Read and check the configuration. Raises ConfigError."""
    files = _read_files(main or conffiles.main_file())
    found = _collect(files)
    values = {}
    for key, setting in zip(KEYS, found.settings, strict=True):
        try:
            values[key.field] = key.read(setting.value)
        except ValueError as error:
            raise _wrong(setting.origin, key.section, key.name, str(error)) from None
    config = Config(
        **values,
        registries=found.named["registry"],
        statics=found.named["static"],
        mirrors=found.named["mirror"],
        aliases=found.aliases,
        fingerprint=conffiles.fingerprint(files),
    )
    for name, mirror in config.mirrors.items():
        if not (mirror.of and mirror.url):
            missing = "url" if mirror.of else "of"
            raise ConfigError(f"[mirror {name}] has no {missing}", do="Write both: of, and url.")
    if not config.low_watermark <= config.high_watermark:
        raise ConfigError("[cache] low_watermark is above high_watermark")
    return config


def settings(main: str | None = None) -> list[Setting]:
    """Return every key with its value and origin, the site's own sections last."""
    files = _read_files(main or conffiles.main_file())
    listed = _collect(files).settings
    for path, parser in _parse(files):
        for section in parser.sections():
            if section not in SECTIONS or section == "alias":
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


class _Found(NamedTuple):
    settings: list[Setting]
    named: dict[str, dict[str, Any]]  # contents of [registry HOST] and the like, by kind and name
    aliases: dict[str, str]


def _collect(files: list[tuple[str, str]]) -> _Found:
    known = {(key.section, key.name): key for key in KEYS}
    values: dict[tuple[str, str], Setting] = {
        at: Setting(*at, key.default, "default", key.about) for at, key in known.items()
    }
    named: dict[str, dict[str, Any]] = {kind: {} for kind in NAMED}
    aliases: dict[str, str] = {}
    for (path, parser), file in zip(_parse(files), files, strict=True):
        for at in READ_RAW:
            if parser.get(*at, fallback="") != conffiles.raw_value([file], *at):
                raise _wrong(path, *at, "write the key at the start of a line of its own")
        for section in parser.sections():
            kind, _, whose = section.partition(" ")
            if kind == "registry" and whose:  # named, if nothing else
                whose = _registry(path, section, whose)
                named[kind].setdefault(whose, Registry())
            elif kind == "static" and whose:
                _check_scheme(path, section, whose)
            for name, value in parser[section].items():
                if section == "alias":
                    aliases[name] = value
                elif whose and kind in NAMED:
                    of_kind = named[kind]
                    of_kind[whose] = _read_named(of_kind.get(whose), path, section, name, value)
                elif (section, name) in known:
                    values[section, name] = values[section, name]._replace(value=value, origin=path)
                else:
                    raise _unknown(path, section, name)
            if section not in SECTIONS and not (whose and kind in NAMED):
                raise _unknown(path, section, "")
    return _Found(list(values.values()), named, aliases)


def _registry(path: str, section: str, host: str) -> str:
    """Return the host of a section as references have it."""
    try:
        return dockerhub.canonical(spelling.host(host, port=443))
    except ValueError as error:
        raise ConfigError(
            f"{path}: [{section}] names no registry", why=str(error), do="Write HOST[:PORT]."
        ) from None


def _check_scheme(path: str, section: str, name: str) -> None:
    if name in SCHEMES:
        raise ConfigError(f"{path}: [{section}] cannot be a scheme", why="it is one already")
    if not _SCHEME.fullmatch(name):
        raise ConfigError(
            f"{path}: [{section}] cannot be a scheme", why="write lower-case letters and digits"
        )


def _read_named(before: Any, path: str, section: str, name: str, value: str) -> Any:
    make, readers = NAMED[section.partition(" ")[0]]
    if name not in readers:
        raise _unknown(path, section, name)
    try:
        return (before or make())._replace(**{name: readers[name](value)})
    except ValueError as error:
        raise _wrong(path, section, name, str(error)) from None


def _unknown(path: str, section: str, name: str) -> ConfigError:
    kind, _, whose = section.partition(" ")
    if section not in SECTIONS and not (whose and kind in NAMED):
        named = ("[registry HOST]", "[static NAME]", "[mirror NAME]")
        known = ", ".join((*(f"[{s}]" for s in SECTIONS), *named))
        return ConfigError(f"{path}: unknown section [{section}]", do=f"Known: {known}.")
    keys = NAMED[kind][1] if whose else [key.name for key in KEYS if key.section == section]
    known = ", ".join(keys)
    return ConfigError(f"{path}: unknown key {name!r} in [{section}]", do=f"Known keys: {known}.")


def _wrong(origin: str, section: str, name: str, why: str) -> ConfigError:
    return ConfigError(f"{origin}: [{section}] {name}", why=why)
