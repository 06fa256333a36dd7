"""swift:// with tokens of Keystone, and what a real Swift does only rarely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.integration.swiftconf import as_site
from tests.parts.keystone import PASSWORD, Cloud
from tests.parts.node import Node
from tests.parts.webanswer import Answer, Request, right_answer
from tests.parts.webfaults import Corrupt, Redirect, Status, Truncate
from tests.parts.webserver import WebServer

OBJECT = "container:swift://images/x.sif"
HOUR = 3600


@pytest.fixture
def cloud(web: WebServer) -> Iterator[Cloud]:
    with WebServer() as storage:
        yield Cloud(web, storage)


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
                    "user": {"name": "me", "domain": {"name": "Default"}, "password": PASSWORD}
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
        f"OS_APPLICATION_CREDENTIAL_SECRET='{PASSWORD}'\n"
    )
    as_site(node, text + f"OS_STORAGE_URL={cloud.storage.url('/v1/AUTH_lab')}\n")
    cloud.put("images/x.sif", sif)
    staged(node, 1, OBJECT, sif)
    method = "application_credential"
    assert cloud.asked() == [
        {"identity": {"methods": [method], method: {"id": "abc", "secret": PASSWORD}}}
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
        let_pass(node, 60)
        refused(node, 2, OBJECT, "NotFound", "is not an identity service", "307")
        assert other.log == []


def test_wrong_credentials(node: Node, cloud: Cloud) -> None:
    as_site(node, cloud.openrc.replace(PASSWORD, "wr0ng"))
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
        (Answer(201, {"X-Subject-Token": "t"}, b"<html>"), "NotAnImage", "not a JSON object"),
        (Answer(404), "NotFound", "is not an identity service"),
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
