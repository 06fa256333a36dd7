"""Finding the login for a registry: in the site's file, or in the user's own."""

from __future__ import annotations

import os
import pwd
import select
import subprocess
import time
from collections.abc import Iterator, Mapping

from hpcimg import dockerhub
from hpcimg.errors import ConfigError
from hpcimg.sources import userfiles
from hpcimg.sources.oci.credentials import (
    Keyring,
    Login,
    find,
    parse_docker,
    parse_helper,
    parse_netrc,
)

# A user's files, in the order in which they are tried. ~ is the account's home directory, never
# $HOME: the job's user does not decide where to look.
FILES = (
    "/run/user/{uid}/containers/auth.json",
    "~/.config/containers/auth.json",
    "~/.apptainer/docker-config.json",
    "~/.singularity/docker-config.json",
    "~/.docker/config.json",
)
ENROOT_FILE = "~/.config/enroot/.credentials"
_HELPER_PATH = "/usr/local/bin:/usr/bin:/bin"
_HELPER_MAX = 64 << 10
_HELPER_TIMEOUT_S = 10.0


def in_text(text: str, host: str, repository: str) -> Login | None:
    """Return the login in the site's credentials file. Helpers named in it are not run.

    Raises ConfigError.
    """
    try:
        keyring = parse_docker(text, "the site's credentials file")
    except ValueError as error:
        raise ConfigError(
            f"[registry {host}] auth_file cannot be used",
            why=str(error),
            do="Write it in the format of docker's config.json.",
        ) from None
    return find(keyring, host, repository)


def of_user(host: str, repository: str) -> Login | None:
    """Return the login of the current account. Unreadable files are skipped."""
    return next((login for login in _found(host, repository) if login is not None), None)


def _found(host: str, repository: str) -> Iterator[Login | None]:
    """Yield the result of each place; later ones are tried only if earlier ones have nothing."""
    try:
        account = pwd.getpwuid(os.geteuid())
    except KeyError:  # no account, so no home directory
        return
    for pattern in (*FILES, ENROOT_FILE):
        name = pattern.format(uid=account.pw_uid)
        parse = parse_netrc if pattern == ENROOT_FILE else parse_docker
        try:
            keyring = parse(userfiles.read(name.replace("~", account.pw_dir, 1)), name)
        except (OSError, ValueError):
            continue
        yield from _in_keyring(keyring, host, repository, account)
        if pattern == ENROOT_FILE:  # netrc names hosts without a port
            yield find(keyring, host.partition(":")[0], repository)


def _in_keyring(
    keyring: Keyring, host: str, repository: str, account: pwd.struct_passwd
) -> Iterator[Login | None]:
    """Yield logins in docker's order: from the host's helper, the file, the store."""
    named = keyring.helpers.get(dockerhub.canonical(host), "")
    if named:
        yield ask_helper(named, host, account)
    yield find(keyring, host, repository)
    if keyring.store:
        yield ask_helper(keyring.store, host, account)


def ask_helper(name: str, host: str, account: pwd.struct_passwd) -> Login | None:
    """Run `docker-credential-NAME get` as ourselves, without a shell; None if it fails."""
    program = f"docker-credential-{name}"
    environment = {
        **without_logins(os.environ),  # proxies and certificates of the fetch
        "PATH": _HELPER_PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "XDG_RUNTIME_DIR": f"/run/user/{account.pw_uid}",
    }
    found = next(
        (
            path
            for directory in _HELPER_PATH.split(":")
            if os.access(path := f"{directory}/{program}", 1)
        ),
        "",
    )
    if not found:
        return None
    server = "https://index.docker.io/v1/" if host == dockerhub.NAME else host
    try:
        output = _run([found, "get"], server.encode(), environment)
        return parse_helper(output.decode(), program)
    except (OSError, ValueError):
        return None


def without_logins(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the site's login at its proxy."""
    found = dict(environment)
    for name, value in environment.items():
        if name.lower().endswith("_proxy") and "@" in value:
            scheme, slashes, _ = value.partition("://")
            found[name] = f"{scheme}{slashes}" * bool(slashes) + value.rpartition("@")[2]
    return found


def _run(argv: list[str], text: bytes, environment: dict[str, str]) -> bytes:
    """Return a program's output. Raises OSError, and ValueError if it is too long or late."""
    with subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(text)  # a single line, which fits into the pipe
            process.stdin.close()
            output = b""
            end = time.monotonic() + _HELPER_TIMEOUT_S
            while len(output) <= _HELPER_MAX:
                left = end - time.monotonic()
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    break
                more = os.read(process.stdout.fileno(), _HELPER_MAX)
                if not more:
                    return output
                output += more
        finally:
            process.kill()
    raise ValueError("its output is too long, or late")
