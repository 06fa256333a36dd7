"""A stand-in for Keystone's Identity API v3, and a store that takes its tokens."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.parts.webanswer import Answer, Request, Resource, right_answer
from tests.parts.webserver import WebServer

PASSWORD = "s3cr=et $HOME"


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
            f"export OS_USERNAME=me\nexport OS_PASSWORD='{PASSWORD}'\nOS_PROJECT_NAME=lab\n"
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
        """Revoke all tokens given so far."""
        self.tokens += 1

    def asked(self) -> list[dict[str, Any]]:
        """Return the requests sent to Keystone."""
        return [json.loads(request.body)["auth"] for request in self.keystone.requests("POST")]

    def _log_in(self, request: Request) -> Answer:
        if PASSWORD not in request.body.decode():
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
