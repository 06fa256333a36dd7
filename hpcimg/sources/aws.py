"""AWS credentials files, and request signatures (Signature Version 4)."""

from __future__ import annotations

import configparser
import os
from typing import NamedTuple

from hpcimg.errors import ConfigError, MissingTool, UserError
from hpcimg.sources import userfiles

try:  # early, while the process can still read its own code
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
except ImportError:
    Credentials = None


class Keys(NamedTuple):
    """An access key with its secret; `origin` names its owner in errors."""

    access: str
    secret: str
    token: str
    origin: str


def site_keys(text: str) -> Keys:
    """Parse the site's credentials file. Raises ConfigError."""
    try:
        keys = _read(text, "the site's S3 credentials")
    except ValueError as error:
        raise ConfigError("the site's S3 credentials cannot be used", why=str(error)) from None
    if keys is None:
        raise ConfigError(
            "the site's S3 credentials cannot be used",
            why="there is no aws_access_key_id with an aws_secret_access_key in [default]",
        )
    return keys


def own_keys() -> Keys | None:
    """Return the keys in the home directory of the current account; None if there are none.

    The files are those of AWS's tools, section [default]. Programs named in them are not run.
    Raises UserError.
    """
    home = userfiles.home()
    for name in ("credentials", "config") if home else ():
        path = os.path.join(home, ".aws", name)
        try:
            keys = _read(userfiles.read(path), path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read", why=error.strerror or "") from None
        except ValueError as error:
            raise UserError(
                f"{path} cannot be used", why=str(error), do="Correct the file."
            ) from None
        if keys is not None:
            return keys
    return None


def signed(url: str, headers: dict[str, str], keys: Keys, region: str) -> dict[str, str]:
    """Return the headers for a GET of the URL now. Raises MissingTool.

    A signature is valid for minutes: a later attempt needs a new one.
    """
    if Credentials is None:
        raise MissingTool(
            "S3 with credentials needs the Python package botocore",
            why="it is not installed with hpcimg on this node",
            do="Install hpcimg with it: make deb, rpm or install with EXTRAS=s3.",
        )
    request = AWSRequest("GET", url, headers)
    credentials = Credentials(keys.access, keys.secret, keys.token or None)
    S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return {str(name): str(value) for name, value in request.headers.items()}


def _read(text: str, origin: str) -> Keys | None:
    """Read section [default]. Raises ValueError, which never quotes the file."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="")
    try:
        parser.read_string(text)
    except configparser.Error:
        raise ValueError("it is not an INI file like ~/.aws/credentials") from None
    section = parser["default"] if parser.has_section("default") else {}
    access = section.get("aws_access_key_id", "").strip()
    secret = section.get("aws_secret_access_key", "").strip()
    token = section.get("aws_session_token", "").strip()
    if not access or not secret:
        return None
    if not all(word.isascii() and word.isprintable() for word in (access, secret, token)):
        raise ValueError("its keys contain invalid characters")
    return Keys(access, secret, token, origin)
