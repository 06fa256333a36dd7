"""Write the section [swift] of a node's configuration."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.parts.node import Node


def configure(node: Node, *, url: str = "", auth: str = "", shared: bool = False) -> None:
    """Write [swift], with `auth` in a file that only we may read."""
    lines = ["[swift]", f"shared = {'yes' if shared else 'no'}"]
    if url:
        lines.append(f"url = {url}")
    if auth:
        file = node.directory / "swift.rc"
        file.write_text(auth)
        file.chmod(0o600)
        lines.append(f"auth_file = {file}")
    node.configure("\n".join(lines) + "\n")


def as_site(node: Node, auth: str, **more: Any) -> None:
    """Configure the site's credentials; without root there is only the user's own file."""
    if os.geteuid() != 0:
        pytest.skip("needs root: only root reads the site's credentials")
    configure(node, auth=auth, **more)
