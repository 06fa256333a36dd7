"""Which references a site allows, in any spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcimg.config import load as config
from hpcimg.errors import HpcimgError
from hpcimg.site import policy

DIGEST = "sha256:" + "0" * 64


def allowed(directory: Path, settings: str, text: str) -> bool:
    main = directory / "hpcimg.conf"
    main.write_text(f"[policy]\n{settings}\n")
    try:
        policy.parse(config.load(str(main)), text)
    except HpcimgError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "http://h/private/x.sif",
        "http://h/%70rivate/x.sif",
        "http://h/public/../private/x.sif",
        "http://h/public/%2e%2e/private/x.sif",
        "http://h/private%2Fx.sif",
        "http://h/private%252Fx.sif",
        "http://h//private/x.sif",
        "http://h/%2Fprivate/x.sif",
        "http://h/./private/x.sif",
        "http://H.:80/private/x.sif",
        "docker://evil.example/x",
        "docker://EVIL.example.:443/x",
        "docker://me@evil.example#x",
        "oras://evil.example/x",
        f"docker://docker.io@{DIGEST}@evil.example/x",
        "docker://ubuntu:22.04",
        "docker://index.docker.io/ubuntu",
        "oras://docker.io/library/ubuntu",
        f"docker://good.example/app:1@{DIGEST}",
        "/data//private/x.sif",
        "library://bad/c/x",
        "library://library.sylabs.io/bad/c/x",
        "library://LIBRARY.sylabs.io.:443/bad/c/x",
        "library://lab/c/x",
        "library://lab/c/x:latest",
        "library://library.sylabs.io/lab/c/x",
        "shub://bad/x",
        "shub://singularity-hub.org/bad/x",
        "shub://Singularity-Hub.org/bad/x",
    ],
)
def test_what_is_denied_is_so_by_every_spelling(tmp_path: Path, text: str) -> None:
    deny = (
        "deny = http://h/private/*, docker://evil.example/*, docker://docker.io/*, "
        "file:///data/private/*, docker://good.example/app@*, library://bad/*, "
        "library://lab/c/x:latest, "
        "shub://singularity-hub.org/*"
    )
    assert not allowed(tmp_path, deny, text)


@pytest.mark.parametrize(
    "text",
    [
        "http://h/public/x.sif",
        "http://H:80/%70ublic/x.sif",
        "http://h/public/a%2Fb//c.sif",
        "docker://good.example/app:1",
        "docker://good.example:443/app:1",
    ],
)
def test_what_is_allowed_is_so_by_every_spelling(tmp_path: Path, text: str) -> None:
    assert allowed(tmp_path, "allow = http://h/public/*, docker://good.example/app:1", text)


@pytest.mark.parametrize(
    "pattern",
    ["docker://Evil.Example/*", "docker://evil.example:443/*", "docker://evil.example./*"],
)
def test_patterns_may_be_spelled_otherwise_too(tmp_path: Path, pattern: str) -> None:
    assert not allowed(tmp_path, f"deny = {pattern}", "docker://evil.example/x")
    assert allowed(tmp_path, f"allow = {pattern}", "docker://evil.example/x")
    assert not allowed(tmp_path, "deny = docker://index.docker.io/*", "docker://ubuntu")
    assert not allowed(tmp_path, "deny = library://Lab.Example/*", "library://lab.example/a/b/c")
    assert not allowed(tmp_path, "deny = library://Lab.X/*", "library://Lab.X/b/c")


@pytest.mark.parametrize(
    "text",
    [
        "http://h/public%2Fx.sif",
        "http://h//public/x.sif",
        "http://h/public/..%2Fx.sif",
        f"docker://good.example/app:1@{DIGEST}",
        "oras://good.example/app:1",
    ],
)
def test_what_is_not_allowed_for_sure_is_not(tmp_path: Path, text: str) -> None:
    assert not allowed(tmp_path, "allow = http://h/public/*, docker://good.example/app:1", text)
