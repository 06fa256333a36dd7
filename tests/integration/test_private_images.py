"""Images that only some users can read, through the whole Prolog: who gets them afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.checks import refused, staged
from tests.parts.private import check_private
from tests.parts.registry import PASSWORD, Registry
from tests.parts.registryclient import auth_file
from tests.parts.tokenserver import TokenServer
from tests.parts.users import NodeWithUsers

MISSING = NodeWithUsers.missing() or Registry.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)

USERS = {"hpcimg-jo": 3_000_001, "hpcimg-al": 3_000_002}
JO, AL = USERS.values()


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry(basic=True) as registry:
        yield registry


@pytest.fixture
def users(open_directory: Path, registry: Registry) -> NodeWithUsers:
    node = NodeWithUsers(open_directory, USERS)
    node.configure(f"[registry {registry.host}]\ninsecure = yes\n")
    return node


@pytest.fixture
def comment(registry: Registry, sif: bytes, tmp_path: Path) -> str:
    (tmp_path / "x.sif").write_bytes(sif)
    registry.push_sif(tmp_path / "x.sif", "lab/x", "1")
    return f"container:oras://{registry.host}/lab/x:1"


def jobs_of(node: NodeWithUsers, uid: int) -> NodeWithUsers:
    node.uid = uid
    return node


def test_an_image_that_one_user_may_read_is_that_users(
    users: NodeWithUsers, registry: Registry, comment: str, sif: bytes
) -> None:
    users.keep("hpcimg-jo", ".docker/config.json", auth_file(registry.host))
    task = staged(jobs_of(users, JO), 1, comment, sif, how="fetched")
    assert task.image.parent == users.cache / "users" / str(JO)
    check_private(task.image, JO)
    refused(jobs_of(users, AL), 2, comment, "Forbidden", "may not be read", "without a login")
    staged(jobs_of(users, JO), 3, comment, sif, how="hit")
    assert PASSWORD not in users.log()


def test_a_user_of_enroot(
    users: NodeWithUsers, registry: Registry, comment: str, sif: bytes
) -> None:
    users.keep(
        "hpcimg-jo",
        ".config/enroot/.credentials",
        f"machine 127.0.0.1 login jo password {PASSWORD}\n",
    )
    staged(jobs_of(users, JO), 1, comment, sif, how="fetched")


def test_a_token_is_asked_for_as_the_user(users: NodeWithUsers, sif: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.sif").write_bytes(sif)
    with TokenServer() as tokens, Registry(tokens=tokens) as registry:
        registry.push_sif(tmp_path / "x.sif", "lab/x", "1")
        users.configure(f"[registry {registry.host}]\ninsecure = yes\n")
        users.keep("hpcimg-jo", ".config/containers/auth.json", auth_file(registry.host))
        task = staged(jobs_of(users, JO), 1, f"container:oras://{registry.host}/lab/x:1", sif)
        assert task.image.parent.name == str(JO)
        assert [token for token in tokens.given if token in users.log()] == []


@pytest.mark.parametrize("shared", ["yes", "no"])
def test_the_sites_login(
    users: NodeWithUsers, registry: Registry, comment: str, sif: bytes, shared: str
) -> None:
    path = users.directory / "site-login.json"
    path.write_text(auth_file(registry.host))
    path.chmod(0o600)
    users.configure(
        f"[registry {registry.host}]\ninsecure = yes\nauth_file = {path}\nshared = {shared}\n"
    )
    first = staged(jobs_of(users, JO), 1, comment, sif, how="fetched")
    second = staged(jobs_of(users, AL), 2, comment, sif)
    if shared == "yes":
        assert {first.image, second.image} == {users.cache / "images" / first.image.name}
    else:
        owners = [task.image.parent for task in (first, second)]
        assert owners == [users.cache / "users" / str(uid) for uid in (JO, AL)]
    shown = users.hpcimg("config").stdout
    assert str(path) in shown
    assert PASSWORD not in shown


def test_a_site_login_that_is_refused_leaves_it_to_the_users(
    users: NodeWithUsers, registry: Registry, comment: str, sif: bytes
) -> None:
    path = users.directory / "site-login.json"
    path.write_text(auth_file(registry.host, username="jo", password="0ld"))
    users.configure(
        f"[registry {registry.host}]\ninsecure = yes\nauth_file = {path}\nshared = yes\n"
    )
    users.keep("hpcimg-jo", ".docker/config.json", auth_file(registry.host))
    task = staged(jobs_of(users, JO), 1, comment, sif)
    assert task.image.parent.name == str(JO)
    refused(jobs_of(users, AL), 2, comment, "Forbidden", "without a login")


def test_a_site_file_that_cannot_be_read_is_the_nodes_fault(
    users: NodeWithUsers, registry: Registry, comment: str
) -> None:
    path = users.directory / "site-login.json"
    users.configure(f"[registry {registry.host}]\ninsecure = yes\nauth_file = {path}\n")
    refused(users, 1, comment, "ConfigError", f"{path} cannot be read")
    path.write_text(f"user: jo, password: {PASSWORD}")
    refused(users, 2, comment, "ConfigError", "auth_file", "not a JSON object")
    assert PASSWORD not in users.log()
