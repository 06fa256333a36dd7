"""The files that container runtimes look for in an image, made from its OCI configuration.

Apptainer and SingularityCE: `.singularity.d`, as they have it in images that they
make from OCI ones. Enroot, with pyxis: `/etc/environment` and `/etc/rc`, which it
reads from squashfs files. All of it is in docs/converted-images.md.
"""

from __future__ import annotations

import json
import shlex
from typing import NamedTuple

from hpcimg.convert.ociconfig import OciConfig
from hpcimg.convert.tar import DIRECTORY, FILE, SYMLINK


class Entry(NamedTuple):
    """One file, directory or symbolic link; `content` is a link's target too."""

    kind: int
    name: bytes
    mode: int
    content: bytes = b""


def over_image(config: OciConfig, format_: str) -> list[Entry]:
    """Return what is there whatever the image has in its place."""
    entries = [
        _directory(".singularity.d"),
        _directory(".singularity.d/actions"),
        _directory(".singularity.d/env"),
        _directory(".singularity.d/libs"),
        _file(".singularity.d/oci-config.json", config.text),
        _file(".singularity.d/labels.json", json.dumps(config.labels, indent=1) + "\n"),
        # Under this name, runtimes complete PATH after it.
        _script(".singularity.d/env/10-docker2singularity.sh", environment(config)),
        _script(".singularity.d/env/90-environment.sh", "# Nothing of the image's.\n"),
        # Under this name, runtimes set the user's own variables after it.
        _script(".singularity.d/env/99-base.sh", _BASE),
        _script(".singularity.d/runscript", runscript(config)),
        _script(".singularity.d/startscript", "# Nothing to start.\n"),
        # Runtimes mount the node's own over them.
        _file("etc/hosts", ""),
        _file("etc/resolv.conf", ""),
    ]
    for action, what in _ACTIONS.items():
        entries.append(_script(f".singularity.d/actions/{action}", _ENVIRONMENT + what))
    if format_ == "squashfs":
        entries.append(_file("etc/environment", _enroot_environment(config)))
        entries.append(_script("etc/rc", _enroot_rc(config)))
    return entries


def under_image() -> list[Entry]:
    """Return what is there if the image has nothing in its place: mount points and links."""
    directories = [_directory(name) for name in ("dev", "etc", "home", "proc", "root", "sys")]
    shared = [Entry(DIRECTORY, name, 0o1777) for name in (b"tmp", b"var/tmp")]
    links = [
        Entry(SYMLINK, name.encode(), 0o777, f".singularity.d/{target}".encode())
        for name, target in _LINKS.items()
    ]
    return directories + shared + links


def environment(config: OciConfig) -> str:
    """Return shell lines that set the image's variables, PATH always, others where not set."""
    lines = []
    for name, value in config.variables:
        unset = "" if name == "PATH" else f'[ -n "${{{name}:-}}" ] || '
        lines.append(f"{unset}export {name}={_quoted(value)}\n")
    return "".join(lines)


def runscript(config: OciConfig) -> str:
    """Return what runs Entrypoint with the arguments given, or those of Cmd. Nothing expands."""
    lines = []
    if config.command:
        lines.append(f"[ $# -gt 0 ] || set -- {_words(config.command)}\n")
    if config.entrypoint:
        lines.append(f'set -- {_words(config.entrypoint)} "$@"\n')
    return "".join([*lines, "[ $# -gt 0 ] || set -- /bin/sh\n", 'exec "$@"\n'])


_LINKS = {
    "singularity": "runscript",
    "environment": "env/90-environment.sh",
    ".exec": "actions/exec",
    ".run": "actions/run",
    ".shell": "actions/shell",
    ".test": "actions/test",
}

# The directory into which runtimes mount the node's GPU libraries.
_BASE = """\
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1="${PS1:-Apptainer> }"
export LD_LIBRARY_PATH PS1
"""

# For Singularity before 3.6; later runtimes have these scripts within themselves.
_ENVIRONMENT = """\
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
"""
_ACTIONS = {
    "exec": 'exec "$@"\n',
    "run": 'exec /.singularity.d/runscript "$@"\n',
    "shell": 'exec /bin/sh "$@"\n',
    "start": "exec /.singularity.d/startscript\n",
    "test": "exit 0\n",
}


def _enroot_environment(config: OciConfig) -> str:
    # One a line, unquoted: there is no way to write a value of several lines.
    return "".join(f"{name}={value}\n" for name, value in config.variables if "\n" not in value)


def _enroot_rc(config: OciConfig) -> str:
    directory = _quoted(config.working_dir or "/")
    begin = f"mkdir -p -- {directory} 2>/dev/null\ncd -- {directory} && unset OLDPWD || exit 1\n"
    return f"{begin}[ ! -s /etc/rc.local ] || . /etc/rc.local\n{runscript(config)}"


def _words(words: tuple[str, ...]) -> str:
    return " ".join(_quoted(word) for word in words)


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _directory(name: str) -> Entry:
    return Entry(DIRECTORY, name.encode(), 0o755)


def _file(name: str, text: str) -> Entry:
    return Entry(FILE, name.encode(), 0o644, text.encode())


def _script(name: str, text: str) -> Entry:
    return Entry(FILE, name.encode(), 0o755, f"#!/bin/sh\n{text}".encode())
