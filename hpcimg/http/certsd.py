"""Certificates for one registry, where podman, skopeo and docker keep them: containers-certs.d(5).

In DIRECTORY/HOST[:PORT]/, `*.crt` are certificate authorities for this registry, and `NAME.cert`
with `NAME.key` is a client certificate.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from hpcimg import programs
from hpcimg.errors import ConfigError

if TYPE_CHECKING:
    import ssl

# Only the first that has a directory for the registry is used.
DIRECTORIES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_MAX_BYTES = 1 << 20


class Certificates(NamedTuple):
    """Texts in PEM, "" for none: certificate authorities, and a client certificate with its key."""

    authorities: str = ""
    client: str = ""


def read(host: str) -> Certificates:
    """Return the certificates for `HOST[:PORT]` that this process can read. Raises ConfigError.

    A client certificate whose key it cannot read is omitted.
    """
    if "/" in host or host.startswith("."):
        return Certificates()
    for directory in DIRECTORIES:
        at = f"{directory}/{host}"
        try:
            names = sorted(os.listdir(at))
        except OSError:  # missing, not readable for us, or a file
            continue
        authorities = [_text(f"{at}/{name}") for name in names if name.endswith(".crt")]
        return Certificates("\n".join(authorities), _client(at, names))
    return Certificates()


def context(certificates: Certificates, host: str) -> ssl.SSLContext:
    """Return a context that trusts these authorities and the node's own. Raises ConfigError."""
    import ssl  # 10 ms, not needed just to read the files

    made = ssl.create_default_context()
    try:
        if certificates.authorities:
            made.load_verify_locations(cadata=certificates.authorities)
        if certificates.client:
            _load(made, certificates.client)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"the certificates of {host} cannot be used",
            why=str(error),
            do=f"Correct the files in {' or '.join(f'{d}/{host}' for d in DIRECTORIES)}.",
        ) from None
    return made


def _client(at: str, names: list[str]) -> str:
    keys = {name.removesuffix(".key") for name in names if name.endswith(".key")}
    for name in names:
        if not name.endswith(".cert"):
            continue
        if name.removesuffix(".cert") not in keys:
            raise ConfigError(
                f"{at}/{name} has no key",
                do="Add the .key file; name certificate authorities *.crt.",
            )
        key = f"{at}/{name.removesuffix('.cert')}.key"
        if os.access(key, os.R_OK, effective_ids=True):
            return f"{_text(f'{at}/{name}')}\n{_text(key)}"
    return ""


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1).decode(errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{path} cannot be used", why="it is larger than 1 MiB")
    return text


def _load(made: ssl.SSLContext, text: str) -> None:
    """Load a certificate and its key; OpenSSL reads these only from files."""
    file = programs.memory_file("client")
    try:
        os.write(file, text.encode())
        # Without a password argument it would prompt on a terminal.
        made.load_cert_chain(f"/proc/self/fd/{file}", password="")
    finally:
        os.close(file)
