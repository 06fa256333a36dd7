"""The configuration files as text: finding them, and extracting single values.

This is all that a cache hit needs of the configuration, so it imports only errno and posix.
Everything else uses `hpcimg.config.load`, which parses the same text in full.
"""

import errno
import posix

from hpcimg import plainfile

TYPE_CHECKING = False  # importing typing takes longer than a hit
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = "/etc/hpcimg/hpcimg.conf"
DEFAULT_CACHE = "/var/cache/hpcimg"
DEFAULT_STATE = "/run/hpcimg"
YES = ("yes", "true", "on")
DEFAULT_REGISTRIES = "/etc/containers/registries.conf"
# The shell's [:space:]; Python's own set of blanks is larger.
_BLANKS = " \t\r\v\f"


def main_file(environ: "Mapping[str, str] | None" = None) -> str:
    """Return the path of the main file: HPCIMG_CONF, or the default.

    `environ` is by default os.environ.
    """
    return _variable("HPCIMG_CONF", environ) or DEFAULT_FILE


def _variable(name: str, environ: "Mapping[str, str] | None") -> str:
    if environ is None:
        import os

        environ = os.environ
    return environ.get(name, "")


def read_files(main: str) -> list[tuple[str, str]]:
    """Return (path, text) of the main file and of conf.d/*.conf next to it, in order.

    Later files win. A missing default main file counts as empty: an unconfigured node works. Raises
    OSError for a missing file named by HPCIMG_CONF, and for any that cannot be read.
    """
    return [(path, _read(path)) for path in _paths(main)]


def read_what_can_be(main: str) -> list[tuple[str, str]]:
    """Return the same as `read_files`, without files that cannot be read.

    The task prolog reads like this, so it is used to tell a job what is wrong.
    """
    files = []
    for path in _paths(main):
        try:
            files.append((path, _read(path)))
        except OSError:
            continue
    return files


def _paths(main: str) -> list[str]:
    head, slash, _ = main.rpartition("/")
    directory = f"{head}{slash}conf.d"
    try:
        names = sorted(n for n in posix.listdir(directory) if n.endswith(".conf") and n[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        names = []
    paths = [main, *(f"{directory}/{name}" for name in names)]
    if main == DEFAULT_FILE:
        try:
            posix.stat(main)
        except OSError:
            del paths[0]
    return paths


def _read(path: str) -> str:
    # As in the shell, only a line feed ends a line.
    try:
        data = plainfile.read(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), path) from None
    return data.decode("utf-8", "surrogateescape")


def raw_value(files: list[tuple[str, str]], section: str, key: str) -> str:
    """Return the last value of a key, or "".

    Like the task prolog, this reads only `key = value` lines without indentation;
    `hpcimg.config.load` refuses files that would be read differently for one of these keys.
    """
    value = ""
    for _, text in files:
        here = False
        for line in text.split("\n"):
            if line.startswith("["):
                here = line.rstrip(_BLANKS) == f"[{section}]"
            elif here:
                name, equals, rest = line.partition("=")
                if equals and name.rstrip(_BLANKS) == key:
                    value = rest.strip(_BLANKS)
    return value


def fingerprint(files: list[tuple[str, str]], node: str = "") -> str:
    """Return a short text that changes when a file does, or registries.conf next to them.

    `node` is by default `node_name()`, here and below.
    """
    registries = raw_value(files, "stage", "registries_conf") or DEFAULT_REGISTRIES
    looks = _looks(registries.replace("%n", node or node_name()))
    whole = "\0".join([*(part for file in files for part in file), *looks])
    # A prime just below 2**64: as good as a checksum for which a module would have to be loaded.
    number = int.from_bytes(whole.encode("utf-8", "surrogateescape"), "big") % (2**64 - 59)
    return f"{number:016x}-{len(whole)}"


def _looks(path: str) -> list[str]:
    """Return a value that changes when registries.conf, or a drop-in, is written or replaced."""
    directory = f"{path}.d"
    try:
        names = sorted(posix.listdir(directory))
    except OSError:
        names = []
    looks = []
    for each in (path, *(f"{directory}/{name}" for name in names)):
        try:
            seen = posix.stat(each)
        except OSError:
            continue
        looks.append(f"{each} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}")
    return looks


def node_name(environ: "Mapping[str, str] | None" = None) -> str:
    """Return the value of %n: Slurm's name for this node, else the short host name."""
    return _variable("SLURMD_NODENAME", environ) or posix.uname().nodename.partition(".")[0]


def directories(files: list[tuple[str, str]], node: str = "") -> tuple[str, str]:
    """Return the cache and the state directory, with %n expanded.

    `hpcimg.config.load` refuses a path that is not absolute; the job is told so through the default
    directory.
    """
    node = node or node_name()
    cache = _directory(files, "cache", DEFAULT_CACHE, node)
    return cache, _directory(files, "state", DEFAULT_STATE, node)


def _directory(files: list[tuple[str, str]], section: str, default: str, node: str) -> str:
    path = raw_value(files, section, "path")
    return (path if path.startswith("/") else default).replace("%n", node)
