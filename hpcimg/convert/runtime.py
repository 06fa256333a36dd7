"""The files that container runtimes expect in an image, made from its OCI configuration.

Apptainer and SingularityCE: `.singularity.d`, as in images that they convert from OCI themselves.
Enroot, with pyxis: `/etc/environment` and `/etc/rc`, which it reads from squashfs files.
docs/converted-images.md describes all of it.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex

from hpcimg.convert.additions import Additions, Entry
from hpcimg.convert.tar import (
    DIRECTORY,
    FILE,
    MAX_COMPONENT_BYTES,
    MAX_PATH_BYTES,
    SYMLINK,
    Member,
)
from hpcimg.image.ociconfig import OciConfig

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def additions(config: OciConfig, format_: str) -> Additions:
    """Return the files that an image of this format, sif or squashfs, needs for its runtime."""
    return Additions(
        tuple(_over_image(config, format_)), tuple(_under_image()), _working_dir(config)
    )


def _working_dir(config: OciConfig) -> tuple[bytes, ...]:
    """Return the working directory as a path below the root; not all runtimes create it."""
    path = posixpath.normpath(f"/{config.working_dir}").strip("/").encode()
    longest = max(map(len, path.split(b"/")))
    fits = len(path) <= MAX_PATH_BYTES and longest <= MAX_COMPONENT_BYTES
    return (path,) if path and fits else ()


def _over_image(config: OciConfig, format_: str) -> list[Entry]:
    entries = [
        _directory(".singularity.d"),
        _directory(".singularity.d/actions"),
        _directory(".singularity.d/env"),
        _directory(".singularity.d/libs"),
        _file(".singularity.d/oci-config.json", config.text),
        _file(".singularity.d/labels.json", json.dumps(config.labels, indent=1) + "\n"),
        # Under this name: runtimes then complete PATH.
        _script(".singularity.d/env/10-docker2singularity.sh", environment(config)),
        _script(".singularity.d/env/90-environment.sh", "# Nothing of the image's.\n"),
        # Under this name: runtimes then set the user's own variables.
        _script(".singularity.d/env/99-base.sh", _BASE),
        _script(".singularity.d/runscript", runscript(config)),
        _script(".singularity.d/startscript", "# Nothing to start.\n"),
        # Runtimes mount the node's files over these.
        _file("etc/hosts", ""),
        _file("etc/resolv.conf", ""),
    ]
    for action, what in _ACTIONS.items():
        entries.append(_script(f".singularity.d/actions/{action}", _ENVIRONMENT + what))
    if format_ == "squashfs":
        entries.append(_file("etc/environment", _enroot_environment(config)))
        entries.append(_script("etc/rc", _enroot_rc(config)))
    return entries


def _under_image() -> list[Entry]:
    directories = [_directory(name) for name in ("dev", "etc", "home", "proc", "root", "sys")]
    shared = [_directory(name, mode=0o1777) for name in ("tmp", "var/tmp")]
    links = [
        (Member(SYMLINK, name.encode(), 0o777, 0, target=f".singularity.d/{to}".encode()), b"")
        for name, to in _LINKS.items()
    ]
    return directories + shared + links


def environment(config: OciConfig) -> str:
    """Return shell lines that set the image's variables: PATH always, others unless set.

    Names that no shell accepts are omitted: such a line would end the script.
    """
    lines = []
    for name, value in config.variables:
        if not _SHELL_NAME.fullmatch(name):
            continue
        unset = "" if name == "PATH" else f'[ -n "${{{name}:-}}" ] || '
        lines.append(f"{unset}export {name}={_quoted(value)}\n")
    return "".join(lines)


def runscript(config: OciConfig) -> str:
    """Return a script that runs Entrypoint with its arguments, or those of Cmd, unexpanded."""
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

# The directory in which runtimes mount the node's GPU libraries.
_BASE = """\
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1="${PS1:-Apptainer> }"
export LD_LIBRARY_PATH PS1
"""

# For Singularity before 3.6; later runtimes have these scripts built in.
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
    # One per line, unquoted: multi-line values cannot be expressed.
    lines = (f"{name}={value}" for name, value in config.variables)
    return "".join(f"{line}\n" for line in lines if "\n" not in line)


def _enroot_rc(config: OciConfig) -> str:
    directory = _quoted(config.working_dir or "/")
    begin = f"mkdir -p -- {directory} 2>/dev/null\ncd -- {directory} && unset OLDPWD || exit 1\n"
    return f"{begin}[ ! -s /etc/rc.local ] || . /etc/rc.local\n{runscript(config)}"


def _words(words: tuple[str, ...]) -> str:
    return " ".join(_quoted(word) for word in words)


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _directory(name: str, *, mode: int = 0o755) -> Entry:
    return Member(DIRECTORY, name.encode(), mode, 0), b""


def _file(name: str, text: str, *, mode: int = 0o644) -> Entry:
    content = text.encode()
    return Member(FILE, name.encode(), mode, 0, len(content)), content


def _script(name: str, text: str) -> Entry:
    return _file(name, f"#!/bin/sh\n{text}", mode=0o755)
