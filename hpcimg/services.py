"""What the site says about the service that a reference leads to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from hpcimg.config import Config
from hpcimg.errors import ConfigError
from hpcimg.reference import Reference

AMAZON_S3 = "https://s3.amazonaws.com"


class Service(NamedTuple):
    """A service and the site's credentials for it.

    `url` is its address, "" where references name their host; `insecure` that
    such a host is spoken to in plain http. The credentials are the text of
    `auth_file`, or `auth_text` itself; `shared` says whether what is fetched
    with them is for all, or for who asked for it.
    """

    url: str = ""
    region: str = ""
    insecure: bool = False
    auth_file: str = ""
    auth_text: str = ""
    shared: bool = False

    @property
    def has_credentials(self) -> bool:
        """Whether the site has credentials for it."""
        return bool(self.auth_file or self.auth_text)

    def credentials(self) -> str:
        """Return the site's credentials, "" for none. Raises ConfigError."""
        if not self.auth_file:
            return self.auth_text
        try:
            with open(self.auth_file, encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.auth_file} cannot be read", why=str(error)) from None


def find(config: Config, wanted: Reference, environment: Mapping[str, str] = os.environ) -> Service:
    """Return the service that a reference leads to."""
    if wanted.scheme == "s3":
        return _s3(config, environment)
    if wanted.scheme in config.statics:
        return Service(url=config.statics[wanted.scheme].url)
    site = config.registry(wanted.host)
    return Service(
        url={"library": config.library_url, "shub": config.shub_url}.get(wanted.scheme, ""),
        insecure=site.insecure,
        auth_file=site.auth_file,
        shared=site.shared,
    )


def _s3(config: Config, environment: Mapping[str, str]) -> Service:
    """Return what [s3] says; what it leaves out may be said by AWS's variables.

    Slurm passes none of them on: they are those of a wrapper around the hook,
    or of the shell that `hpcimg stage` is called from.
    """

    def first(said: str, *names: str) -> str:
        return next(filter(None, [said, *(environment.get(name, "") for name in names)]), "")

    url = first(config.s3_url, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or AMAZON_S3
    return Service(
        url=url.rstrip("/"),
        region=first(config.s3_region, "AWS_REGION", "AWS_DEFAULT_REGION"),
        auth_file=config.s3_auth_file,
        auth_text="" if config.s3_auth_file else _keys(environment),
        shared=config.s3_shared,
    )


def _keys(environment: Mapping[str, str]) -> str:
    """Return the keys of the environment as a credentials file has them."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    lines = [f"{name.lower()} = {environment[name]}" for name in names if environment.get(name)]
    return "\n".join(["[default]", *lines]) if len(lines) > 1 else ""
