"""swift:// from a real Swift; test_keystone.py has what it does only rarely."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from hpcimg.sources.openstack import openrc
from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.integration.swiftconf import as_site, configure
from tests.parts.accountnode import NodeWithAccount
from tests.parts.node import Node
from tests.parts.private import check_private
from tests.parts.swiftservers import GUEST, GUEST_KEY, KEY, USER, SwiftServers
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

HOUR = 3600
SECRET = "s3cr=et $HOME"
OBJECT = "container:swift://images/x.sif"
OWN_FILE = openrc.OWN_FILE


@pytest.fixture(scope="session")
def servers() -> Iterator[SwiftServers]:
    if missing := SwiftServers.missing():
        pytest.skip(missing)
    with SwiftServers() as servers:
        servers.make_container("public", read=".r:*,.rlistings")
        servers.make_container("private")
        yield servers


def tempauth(servers: SwiftServers, user: str = USER, key: str = KEY) -> str:
    return f"export ST_AUTH={servers.auth_url}\nexport ST_USER={user}\nexport ST_KEY={key}\n"


# A real Swift


def test_a_public_container(node: Node, servers: SwiftServers, make_sif: MakeSif) -> None:
    configure(node, url=servers.storage_url)
    first, second = make_sif(), make_sif()
    servers.put("public", "bio/sam%20tools%2B%C3%A9.sif", first)
    comment = "container:swift://public/bio/sam%20tools+%C3%A9.sif"
    task = staged(node, 1, comment, first, how="fetched")
    assert task.image.parent == node.cache / "images"
    let_pass(node, 2 * HOUR)
    staged(node, 2, comment, first, how="unchanged")
    servers.put("public", "bio/sam%20tools%2B%C3%A9.sif", second)
    let_pass(node, 2 * HOUR)
    staged(node, 3, comment, second, how="fetched")


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_large_object(node: Node, servers: SwiftServers, make_sif: MakeSif, kind: str) -> None:
    configure(node, url=servers.storage_url)
    data = make_sif()
    put = servers.put_static if kind == "static" else servers.put_dynamic
    put("public", f"{kind}.sif", [data[:100_000], data[100_000:]])
    staged(node, 1, f"container:swift://public/{kind}.sif", data)
    let_pass(node, 2 * HOUR)
    staged(node, 2, f"container:swift://public/{kind}.sif", data, how="unchanged")


def test_what_is_not_there(node: Node, servers: SwiftServers) -> None:
    configure(node, url=servers.storage_url)
    refused(
        node, 1, "container:swift://public/none.sif", "NotFound",
        "there is no object swift://public/none.sif", "404", "container and object",
    )  # fmt: skip


def test_what_wants_credentials(node: Node, servers: SwiftServers, sif: bytes) -> None:
    configure(node, url=servers.storage_url)
    servers.put("private", "x.sif", sif)
    refused(
        node, 1, "container:swift://private/x.sif", "Forbidden",
        "may not be read without credentials", f"~/{OWN_FILE}",
    )  # fmt: skip


def test_no_site_and_no_credentials(node: Node) -> None:
    refused(
        node, 1, "container:swift://public/x.sif", "Forbidden",
        "no credentials are known", f"~/{OWN_FILE}",
    )  # fmt: skip


@pytest.mark.parametrize("shared", [False, True])
def test_tempauth(node: Node, servers: SwiftServers, sif: bytes, shared: bool) -> None:
    as_site(node, tempauth(servers), shared=shared)
    node.uid = 1
    servers.put("private", "x.sif", sif)
    task = staged(node, 1, "container:swift://private/x.sif", sif)
    private = task.image.parent == node.cache / "users" / "1"
    assert private is not shared
    node.uid = 2
    staged(node, 2, "container:swift://private/x.sif", sif, how="hit" if shared else "fetched")


def test_tempauth_refuses(node: Node, servers: SwiftServers) -> None:
    as_site(node, tempauth(servers, key="wr0ng"))
    node.uid = 0
    task = refused(
        node, 1, "container:swift://private/x.sif", "Forbidden",
        "refuses the credentials of [swift] auth_file",
    )  # fmt: skip
    assert "wr0ng" not in task.printed + node.log()


def test_an_acl_that_leaves_us_out(node: Node, servers: SwiftServers, sif: bytes) -> None:
    as_site(node, tempauth(servers, GUEST, GUEST_KEY))
    node.uid = 0
    servers.put("private", "x.sif", sif)
    refused(
        node, 1, "container:swift://private/x.sif", "Forbidden",
        "may not be read with the credentials of [swift] auth_file", "403",
    )  # fmt: skip


def test_a_temp_url_that_we_sign(node: Node, servers: SwiftServers, sif: bytes) -> None:
    servers.use_temp_url_key(SECRET)
    servers.put("private", "a/b%20c.sif", sif)
    as_site(node, f"TEMP_URL_KEY='{SECRET}'\n", url=servers.storage_url, shared=True)
    staged(node, 1, "container:swift://private/a/b%20c.sif", sif)
    let_pass(node, 2 * HOUR)
    staged(node, 2, "container:swift://private/a/b%20c.sif", sif, how="unchanged")


def test_a_temp_url_with_another_key(node: Node, servers: SwiftServers, sif: bytes) -> None:
    servers.put("private", "other.sif", sif)
    as_site(node, "TEMP_URL_KEY=another\n", url=servers.storage_url)
    node.uid = 0
    refused(
        node, 1, "container:swift://private/other.sif", "Forbidden",
        "may not be read with the temp URL key of [swift] auth_file",
    )  # fmt: skip


# The job's user


@pytest.fixture
def user_node(open_directory: Path) -> NodeWithAccount:
    if os.geteuid() != 0:
        pytest.skip("needs root, to act for several users")
    return NodeWithAccount(open_directory)


URI = "container:swift://private/x.sif"


def test_the_users_own_file(user_node: NodeWithAccount, servers: SwiftServers, sif: bytes) -> None:
    servers.put("private", "x.sif", sif)
    user_node.write(OWN_FILE, tempauth(servers))
    task = staged(user_node, 1, URI, sif, how="fetched")
    assert task.image.parent == user_node.cache / "users" / "54321"
    check_private(task.image, 54321)
    assert KEY not in user_node.log() + (user_node.state / "events.jsonl").read_text()
    # Not for others.
    user_node.uid = 1
    refused(user_node, 2, URI, "Forbidden", "no credentials are known")


def test_the_sites_credentials_go_first(
    user_node: NodeWithAccount, servers: SwiftServers, sif: bytes
) -> None:
    servers.put("private", "x.sif", sif)
    user_node.write(OWN_FILE, "echo nothing is asked of this file\n")
    configure(user_node, auth=tempauth(servers), shared=True)
    task = staged(user_node, 1, URI, sif)
    assert task.image.parent == user_node.cache / "images"


def test_the_users_own_file_where_the_sites_do_not_serve(
    user_node: NodeWithAccount, servers: SwiftServers, sif: bytes
) -> None:
    servers.put("private", "x.sif", sif)
    user_node.write(OWN_FILE, tempauth(servers))
    configure(user_node, auth=tempauth(servers, GUEST, GUEST_KEY), shared=True)
    task = staged(user_node, 1, URI, sif)
    assert task.image.parent == user_node.cache / "users" / "54321"


def test_a_file_of_the_users_that_wants_a_shell(user_node: NodeWithAccount) -> None:
    file = user_node.write(
        OWN_FILE, f"OS_USERNAME=me\nexport OS_PASSWORD=$(touch {user_node.home}/ran)\n"
    )
    refused(user_node, 1, URI, "UserError", f"{file} cannot be used", "line 2 needs a shell")
    assert not (user_node.home / "ran").exists()


def test_a_file_of_the_users_that_is_none(user_node: NodeWithAccount) -> None:
    file = user_node.write(OWN_FILE, "")
    file.unlink()
    os.mkfifo(file, 0o600)
    os.chown(file, 54321, 54321)
    refused(user_node, 1, URI, "UserError", "it is not a regular file")
    file.unlink()
    others = user_node.directory / "others"
    others.touch(mode=0o600)
    file.symlink_to(others)
    let_pass(user_node, 60)
    refused(user_node, 2, URI, "UserError", "Permission denied")


def test_a_temp_url_is_told_to_nobody(node: Node, web: WebServer) -> None:
    as_site(node, f"TEMP_URL_KEY='{SECRET}'\n", url=web.url("/v1/AUTH_lab"))
    node.uid = 0
    web.script("/v1/AUTH_lab/images/x.sif", [Status(401), Status(401)])
    task = refused(node, 1, OBJECT, "Forbidden", "with the temp URL key")
    *_, request = web.requests()
    query = parse_qs(request.query)
    assert set(query) == {"temp_url_sig", "temp_url_expires"}
    events = (node.state / "events.jsonl").read_text()
    assert query["temp_url_sig"][0] not in task.printed + node.log() + events


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", "line 1 needs a shell"),
        ("OS_USERNAME=me\n", "no credentials are known"),
        ("OS_AUTH_URL=http://127.0.0.1:9\n", "names no user to log in as"),
        ("ST_AUTH=http://127.0.0.1:9\nST_USER=a\n", "names no user to log in as"),
        (
            "OS_AUTH_URL=http://127.0.0.1:9\nOS_APPLICATION_CREDENTIAL_ID=a\n",
            "names no user to log in as",
        ),
        ("OS_AUTH_URL=ftp://h\nOS_USERNAME=a\nOS_PASSWORD=b\n", "OS_AUTH_URL is no address"),
        ("TEMP_URL_KEY=k\n", "the address for TEMP_URL_KEY is no address"),
    ],
)
def test_a_file_of_the_sites_that_cannot_be_used(node: Node, text: str, words: str) -> None:
    as_site(node, text)
    node.uid = 0
    refused(node, 1, OBJECT, "Forbidden" if "known" in words else "ConfigError", words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("images/../private/x", ". or .."),
        ("images/%2e%2e/private/x", ". or .."),
        ("images", "CONTAINER/OBJECT"),
        ("images/", "CONTAINER/OBJECT"),
        ("images%2Fx", "did you mean swift://images/x"),
        ("images/%ff", "not UTF-8"),
        ("images/x?temp_url_sig=abcdef", "swift://images/x has a query"),
    ],
)
def test_what_is_no_name(node: Node, web: WebServer, text: str, words: str) -> None:
    configure(node, url=web.url("/v1/AUTH_lab"))
    task = refused(node, 1, f"container:swift://{text}", "BadReference", words)
    assert "abcdef" not in task.printed
    assert web.log == []
