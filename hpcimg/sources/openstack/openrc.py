"""OpenStack credentials files: lines of KEY=VALUE, parsed and never run."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from hpcimg.errors import ConfigError, HpcimgError, UserError
from hpcimg.sources import userfiles

# Below the home directory of the job's user, from the node's account database.
OWN_FILE = ".config/hpcimg/swift.rc"

_LINE = re.compile(
    r"""(?:export\s+)?(?P<key>[A-Za-z_][A-Za-z0-9_]*)=
    (?: '(?P<literal>[^']*)' | "(?P<quoted>[^"$`\\]*)" | (?P<bare>[^\s'"$`\\;&|<>()]*) )
    (?:\s+\#.*)?""",
    re.VERBOSE,
)


class Openrc(NamedTuple):
    """The content of a credentials file, by its keys; "" for missing ones.

    `where` names the file in errors; `site` says whether it is the site's.
    """

    os_auth_url: str = ""
    os_username: str = ""
    os_user_id: str = ""
    os_password: str = ""
    os_user_domain_name: str = ""
    os_user_domain_id: str = ""
    os_project_name: str = ""
    os_project_id: str = ""
    os_project_domain_name: str = ""
    os_project_domain_id: str = ""
    os_application_credential_id: str = ""
    os_application_credential_secret: str = ""
    os_region_name: str = ""
    os_interface: str = ""
    os_storage_url: str = ""
    st_auth: str = ""
    st_user: str = ""
    st_key: str = ""
    temp_url_key: str = ""
    where: str = ""
    site: bool = False

    def mistake(self, what: str, *, why: str = "", do: str = "") -> HpcimgError:
        """Return the error for a mistake in the file, which its owner has to correct."""
        return (ConfigError if self.site else UserError)(what, why=why, do=do)


def parse(text: str, where: str, *, site: bool) -> Openrc:
    """Parse the text of a credentials file; keys that `Openrc` does not have are ignored.

    Raises UserError, ConfigError for lines that need a shell, without quoting them: they may
    contain a secret.
    """
    openrc = Openrc(where=where, site=site)
    values: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise openrc.mistake(
                f"{where} cannot be used",
                why=f"line {number} needs a shell, and the file is parsed, not run",
                do="Leave only lines of KEY=VALUE, each value as it is, "
                "in single quotes where it has characters that a shell changes.",
            )
        value = match["literal"] or match["quoted"] or match["bare"] or ""
        if not value.isprintable() or value != value.strip():
            raise openrc.mistake(
                f"{where} cannot be used",
                why=f"the value in line {number} has blanks at its ends, or control characters",
            )
        key = match["key"].lower()
        if key in Openrc._fields and key not in ("where", "site"):
            values[key] = value
    return openrc._replace(**values)


def own() -> tuple[str, str]:
    """Return path and text of the current user's file; the text is "" if there is none.

    Raises UserError if it cannot be read.
    """
    home = userfiles.home()
    if not home:
        return f"~/{OWN_FILE}", ""
    path = os.path.join(home, OWN_FILE)
    try:
        return path, userfiles.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return path, ""
    except OSError as error:
        raise _unreadable(path, error.strerror or "") from None
    except ValueError as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: str, why: str) -> UserError:
    return UserError(f"{path} cannot be read", why=why, do="Correct the file, or remove it.")
