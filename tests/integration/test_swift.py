"""swift:// from a real Swift, and from stand-ins for Keystone and for storage that misbehaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from hpcimg.sources import openrc
from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.daemon import PATH
from tests.parts.node import PROLOG, Node
from tests.parts.swiftservers import GUEST, GUEST_KEY, KEY, USER, SwiftServers
from tests.parts.webanswer import Answer, Request, Resource, right_answer
from tests.parts.webfaults import Corrupt, Redirect, Status, Truncate
from tests.parts.webserver import WebServer

HOUR = 3600
SECRET = "s3cr=et $HOME"


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


def configure(node: Node, *, url: str = "", auth: str = "", shared: bool = False) -> None:
    """Write [swift], with `auth` in a file that only we may read."""
    lines = ["[swift]", f"shared = {'yes' if shared else 'no'}"]
    if url:
        lines.append(f"url = {url}")
    if auth:
        file = node.folder / "swift.rc"
        file.write_text(auth)
        file.chmod(0o600)
        lines.append(f"auth_file = {file}")
    node.configure("\n".join(lines) + "\n")


def as_site(node: Node, auth: str, **more: Any) -> None:
    """Let the credentials be the site's; without root there is only the user's own file."""
    if os.geteuid() != 0:
        pytest.skip("needs root: only root reads the site's credentials")
    configure(node, auth=auth, **more)


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
        "may not be read without credentials", f"~/{openrc.OWN_FILE}",
    )  # fmt: skip


def test_no_site_and_no_credentials(node: Node) -> None:
    refused(
        node, 1, "container:swift://public/x.sif", "Forbidden",
        "no credentials are known", f"~/{openrc.OWN_FILE}",
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


class NodeWithAccount(Node):
    """A node whose accounts include one more, with a home folder; the host's stay as they are."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        super().__init__(folder, uid=54321)
        self.home.mkdir()
        os.chown(self.home, self.uid, self.uid)
        # All of the folder: a mount on the one file ends when the host gets another account.
        self._etc = folder / "etc"
        self._etc.mkdir()
        for name in ("passwd", "group", "nsswitch.conf", "hosts"):
            shutil.copy(f"/etc/{name}", self._etc)
        with (self._etc / "passwd").open("a") as file:
            file.write(f"hpcjob:x:54321:54321::{self.home}:/bin/sh\n")

    def write(self, text: str) -> Path:
        """Write the user's own credentials file, which only the user may read."""
        file = self.home / openrc.OWN_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for path in (file, *file.parents[:2]):
            path.chmod(0o700 if path.is_dir() else 0o400)
            os.chown(path, self.uid, self.uid)
        return file

    def start_prolog(self, job: int | str, comment: str | None) -> subprocess.Popen[str]:
        """Start Prolog where our account is known, and only there."""
        script = 'mount --bind "$1" /etc && exec "$2"'
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", str(self._etc), str(PROLOG)],
            # $HOME is what anybody may set.
            env={**self.environment(job, comment), "HOME": "/nonexistent", "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def user_node(open_folder: Path) -> NodeWithAccount:
    if os.geteuid() != 0:
        pytest.skip("needs root, to act for several users")
    return NodeWithAccount(open_folder)


URI = "container:swift://private/x.sif"


def test_the_users_own_file(user_node: NodeWithAccount, servers: SwiftServers, sif: bytes) -> None:
    servers.put("private", "x.sif", sif)
    user_node.write(tempauth(servers))
    task = staged(user_node, 1, URI, sif, how="fetched")
    seen = task.image.stat()
    assert task.image.parent == user_node.cache / "users" / "54321"
    assert (seen.st_uid, seen.st_mode & 0o777) == (54321, 0o400)
    assert KEY not in user_node.log() + (user_node.state / "events.jsonl").read_text()
    # Not for others.
    user_node.uid = 1
    refused(user_node, 2, URI, "Forbidden", "no credentials are known")


def test_the_sites_credentials_go_first(
    user_node: NodeWithAccount, servers: SwiftServers, sif: bytes
) -> None:
    servers.put("private", "x.sif", sif)
    user_node.write("echo nothing is asked of this file\n")
    configure(user_node, auth=tempauth(servers), shared=True)
    task = staged(user_node, 1, URI, sif)
    assert task.image.parent == user_node.cache / "images"


def test_the_users_own_file_where_the_sites_do_not_serve(
    user_node: NodeWithAccount, servers: SwiftServers, sif: bytes
) -> None:
    servers.put("private", "x.sif", sif)
    user_node.write(tempauth(servers))
    configure(user_node, auth=tempauth(servers, GUEST, GUEST_KEY), shared=True)
    task = staged(user_node, 1, URI, sif)
    assert task.image.parent == user_node.cache / "users" / "54321"


def test_a_file_of_the_users_that_wants_a_shell(user_node: NodeWithAccount) -> None:
    file = user_node.write(f"OS_USERNAME=me\nexport OS_PASSWORD=$(touch {user_node.home}/ran)\n")
    refused(user_node, 1, URI, "UserError", f"{file} cannot be used", "line 2 needs a shell")
    assert not (user_node.home / "ran").exists()


def test_a_file_of_the_users_that_is_none(user_node: NodeWithAccount) -> None:
    file = user_node.write("")
    file.unlink()
    os.mkfifo(file, 0o600)
    os.chown(file, 54321, 54321)
    refused(user_node, 1, URI, "UserError", "it is no plain file")
    file.unlink()
    others = user_node.folder / "others"
    others.touch(mode=0o600)
    file.symlink_to(others)
    refused(user_node, 2, URI, "UserError", "Permission denied")


# Keystone, and what a real Swift does only rarely


class Cloud:
    """Keystone on one server and storage on another, which takes the newest token only."""

    def __init__(self, keystone: WebServer, storage: WebServer) -> None:
        self.keystone, self.storage = keystone, storage
        self.tokens = 0
        self.region = "North"
        keystone.handle("/identity/v3/auth/tokens", self._log_in)

    @property
    def openrc(self) -> str:
        return (
            f'export OS_AUTH_URL="{self.keystone.url("/identity/v3")}"\n'
            f"export OS_USERNAME=me\nexport OS_PASSWORD='{SECRET}'\nOS_PROJECT_NAME=lab\n"
            "OS_USER_DOMAIN_NAME=Default\nOS_PROJECT_DOMAIN_ID=default\nOS_REGION_NAME=North\n"
        )

    def put(self, path: str, data: bytes, **headers: str) -> str:
        """Serve an object to those with the newest token; return its path on the server."""
        where = f"/v1/AUTH_lab/{path}"
        etag = hashlib.md5(data).hexdigest()  # without quotes, as Swift's own
        resource = Resource(data, etag, "", True, "application/octet-stream", headers)
        self.storage.put(where, data, etag=etag, headers=headers)  # for the faults

        def answer(request: Request) -> Answer:
            if request.headers.get("X-Auth-Token") != f"token-{self.tokens}":
                return Answer(401, {"WWW-Authenticate": "Keystone uri='x'"})
            return right_answer(request, resource)

        self.storage.handle(where, answer)
        return where

    def revoke(self) -> None:
        """Let no token be good that was given so far."""
        self.tokens += 1

    def asked(self) -> list[dict[str, Any]]:
        """Return what was sent to Keystone."""
        return [json.loads(request.body)["auth"] for request in self.keystone.requests("POST")]

    def _log_in(self, request: Request) -> Answer:
        if SECRET not in request.body.decode():
            return Answer(401)
        self.tokens += 1
        endpoints = [
            {"interface": "internal", "region_id": self.region, "url": "http://127.0.0.1:9/"},
            {"interface": "public", "region_id": "South", "url": "http://127.0.0.1:9/"},
            {
                "interface": "public",
                "region_id": self.region,
                "url": self.storage.url("/v1/AUTH_lab"),
            },
        ]
        catalog = [{"type": "compute"}, {"type": "object-store", "endpoints": endpoints}]
        body = json.dumps({"token": {"catalog": catalog}}).encode()
        return Answer(201, {"X-Subject-Token": f"token-{self.tokens}"}, body)


@pytest.fixture
def cloud(web: WebServer) -> Iterator[Cloud]:
    with WebServer() as storage:
        yield Cloud(web, storage)


OBJECT = "container:swift://images/x.sif"


def test_keystone(node: Node, cloud: Cloud, make_sif: MakeSif) -> None:
    as_site(node, cloud.openrc)
    first, second = make_sif(), make_sif()
    where = cloud.put("images/x.sif", first)
    staged(node, 1, OBJECT, first)
    assert cloud.asked() == [
        {
            "identity": {
                "methods": ["password"],
                "password": {
                    "user": {"name": "me", "domain": {"name": "Default"}, "password": SECRET}
                },
            },
            "scope": {"project": {"name": "lab", "domain": {"id": "default"}}},
        }
    ]
    let_pass(node, 2 * HOUR)
    staged(node, 2, OBJECT, first, how="unchanged")
    assert cloud.storage.count("GET", where) == 2
    cloud.put("images/x.sif", second)
    let_pass(node, 2 * HOUR)
    staged(node, 3, OBJECT, second, how="fetched")


def test_an_application_credential(node: Node, cloud: Cloud, sif: bytes) -> None:
    text = (
        f"OS_AUTH_URL={cloud.keystone.url('/identity')}\nOS_APPLICATION_CREDENTIAL_ID=abc\n"
        f"OS_APPLICATION_CREDENTIAL_SECRET='{SECRET}'\n"
    )
    as_site(node, text + f"OS_STORAGE_URL={cloud.storage.url('/v1/AUTH_lab')}\n")
    cloud.put("images/x.sif", sif)
    staged(node, 1, OBJECT, sif)
    method = "application_credential"
    assert cloud.asked() == [
        {"identity": {"methods": [method], method: {"id": "abc", "secret": SECRET}}}
    ]


def test_a_token_that_runs_out_in_the_middle(node: Node, cloud: Cloud, sif: bytes) -> None:
    as_site(node, cloud.openrc)
    where = cloud.put("images/x.sif", sif)

    def cut(answer: Answer, request: Request, resource: Any) -> Answer:
        cloud.revoke()
        return Truncate(300_000)(answer, request, resource)

    cloud.storage.script(where, [cut])
    staged(node, 1, OBJECT, sif)
    assert len(cloud.asked()) == 2
    requests = cloud.storage.requests("GET", where)
    assert [request.status for request in requests] == [200, 401, 206]
    assert requests[-1].headers["Range"] == "bytes=300000-"


def test_a_token_that_is_never_good(node: Node, cloud: Cloud, sif: bytes) -> None:
    as_site(node, cloud.openrc)
    node.uid = 0
    where = cloud.put("images/x.sif", sif)
    cloud.storage.handle(where, lambda _: Answer(401))
    refused(node, 1, OBJECT, "Forbidden", "with the credentials of [swift] auth_file", "401")
    assert (len(cloud.asked()), cloud.storage.count("GET", where)) == (2, 2)


def test_a_redirect_gets_no_token(node: Node, cloud: Cloud, sif: bytes) -> None:
    as_site(node, cloud.openrc)
    where = cloud.put("images/x.sif", sif)
    with WebServer() as other:
        other.put("/x.sif", sif)
        cloud.storage.script(where, [Redirect(other.url("/x.sif"))])
        refused(node, 1, OBJECT, "UserError", "redirects of an object store are not followed")
        cloud.keystone.script(
            "/identity/v3/auth/tokens", [Redirect(other.url("/v3/auth/tokens"), 307)]
        )
        refused(node, 2, OBJECT, "NotFound", "is no place to log in", "307")
        assert other.log == []


def test_wrong_credentials(node: Node, cloud: Cloud) -> None:
    as_site(node, cloud.openrc.replace(SECRET, "wr0ng"))
    node.uid = 0
    task = refused(
        node, 1, OBJECT, "Forbidden", "refuses the credentials of [swift] auth_file", "expired"
    )
    assert "wr0ng" not in task.printed + node.log()


def test_a_region_that_is_not_there(node: Node, cloud: Cloud) -> None:
    as_site(node, cloud.openrc)
    cloud.region = "East"
    refused(node, 1, OBJECT, "NotFound", "no object store in the region North", "has East, South")


@pytest.mark.parametrize("catalog", [b"{}", b'{"token": {"catalog": [1, {"type": 2}]}}'])
def test_no_object_store(node: Node, cloud: Cloud, catalog: bytes) -> None:
    as_site(node, cloud.openrc)
    answer = Answer(201, {"X-Subject-Token": "t"}, catalog)
    cloud.keystone.handle("/identity/v3/auth/tokens", lambda _: answer)
    refused(node, 1, OBJECT, "NotFound", "names no object store", "OS_STORAGE_URL")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(201, {"X-Subject-Token": "t"}, b"<html>"), "NotAnImage", "no JSON object"),
        (Answer(404), "NotFound", "is no place to log in"),
        (
            Answer(
                201,
                {"X-Subject-Token": "t"},
                b'{"token": {"catalog": [{"type": "object-store", "endpoints":'
                b' [{"interface": "public", "region_id": "North", "url": "file:///etc/x"}]}]}}',
            ),
            "ConfigError",
            "is no address that can be used",
        ),
    ],
)
def test_a_keystone_that_is_none(
    node: Node, cloud: Cloud, answer: Answer, error: str, words: str
) -> None:
    as_site(node, cloud.openrc)
    cloud.keystone.handle("/identity/v3/auth/tokens", lambda _: answer)
    refused(node, 1, OBJECT, error, words)


def test_busy_servers(node: Node, cloud: Cloud, sif: bytes) -> None:
    as_site(node, cloud.openrc)
    where = cloud.put("images/x.sif", sif)
    cloud.keystone.script("/identity/v3/auth/tokens", [Status(503, retry_after="0")])
    cloud.storage.script(where, [Status(503, retry_after="0"), Status(498)])
    staged(node, 1, OBJECT, sif)
    assert cloud.storage.count("GET", where) == 3


def test_another_content_than_the_etag_says(node: Node, cloud: Cloud, sif: bytes) -> None:
    as_site(node, cloud.openrc)
    where = cloud.put("images/x.sif", sif)
    cloud.storage.script(where, [Corrupt(350_000)])
    refused(node, 1, OBJECT, "Damaged", "is not what was stored")
    assert node.images() == []


def test_an_object_that_changes_while_it_is_read(
    node: Node, cloud: Cloud, make_sif: MakeSif
) -> None:
    """Swift knows no If-Range: it sends the rest of what is there now."""
    as_site(node, cloud.openrc)
    first, second = make_sif(), make_sif()
    large = {"X-Static-Large-Object": "True"}  # no md5 would tell
    where = cloud.put("images/x.sif", first, **large)

    def cut(answer: Answer, request: Request, resource: Any) -> Answer:
        cloud.put("images/x.sif", second, **large)
        return Truncate(300_000)(answer, request, resource)

    def ignore_if_range(answer: Answer, request: Request, resource: Any) -> Answer:
        del request.headers["If-Range"]
        return right_answer(request, resource)

    cloud.storage.script(where, [cut, ignore_if_range])
    staged(node, 1, OBJECT, second)
    statuses = [request.status for request in cloud.storage.requests("GET", where)]
    assert statuses == [200, 206, 200]


def test_a_temp_url_is_told_to_nobody(node: Node, web: WebServer) -> None:
    as_site(node, f"TEMP_URL_KEY='{SECRET}'\n", url=web.url("/v1/AUTH_lab"))
    node.uid = 0
    web.script("/v1/AUTH_lab/images/x.sif", [Status(401)])
    task = refused(node, 1, OBJECT, "Forbidden", "with the temp URL key")
    (request,) = web.requests()
    query = parse_qs(request.query)
    assert set(query) == {"temp_url_sig", "temp_url_expires"}
    events = (node.state / "events.jsonl").read_text()
    assert query["temp_url_sig"][0] not in task.printed + node.log() + events


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", "line 1 needs a shell"),
        ("OS_USERNAME=me\n", "no credentials are known"),
        ("OS_AUTH_URL=http://127.0.0.1:9\n", "names nobody to log in as"),
        ("ST_AUTH=http://127.0.0.1:9\nST_USER=a\n", "names nobody to log in as"),
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
        ("images/%2e%2e/private/x", "did you mean swift://images/../private/x"),
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
