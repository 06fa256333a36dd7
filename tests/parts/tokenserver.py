"""A token server that docker-registry trusts: its tokens are signed, and expire."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs

from tests.parts.webanswer import Answer, Request
from tests.parts.webserver import WebServer

SERVICE, ISSUER = "the registry", "the token server"
# The registry accepts a token this much longer than it is valid.
_LEEWAY_S = 60


class TokenServer:
    """Gives tokens to who is known, and to all others ones that are good for nothing.

    A context manager. `users` are passwords by name, `identity_tokens` what a
    refresh is given for. A token is good for `lifetime_s`; `given` has all.
    `certificate` is what a registry has to trust.
    """

    def __init__(self) -> None:
        self.users = {"jo": "s3cret"}
        self.identity_tokens = {"1dentity"}
        self.lifetime_s = 300.0
        self.given: list[str] = []
        self.web = WebServer()

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="tokens-")
        self._key = Path(self._directory.name) / "key.pem"
        self.certificate = Path(self._directory.name) / "certificate.pem"
        argv = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2"]
        argv += ["-subj", "/CN=tokens", "-out", str(self.certificate), "-keyout", str(self._key)]
        subprocess.run(argv, check=True, capture_output=True)
        self.web.__enter__()
        self.realm = self.web.handle("/token", self._answer)
        return self

    def __exit__(self, *error: object) -> None:
        self.web.__exit__(*error)
        self._directory.cleanup()

    def requests(self) -> list[Request]:
        """Return the requests so far."""
        return self.web.requests(path="/token")

    def token(self, repository: str, *actions: str, lifetime_s: float = 300) -> str:
        """Sign a token for a repository."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "exp": int(now - _LEEWAY_S + lifetime_s),
            "nbf": int(now - 2 * _LEEWAY_S),
            "iat": int(now),
            "access": [{"type": "repository", "name": repository, "actions": list(actions)}],
        }
        lines = self.certificate.read_text().splitlines()
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(lines[1:-1])]}
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        argv = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        done = subprocess.run(argv, input=signed.encode(), check=True, capture_output=True)
        return f"{signed}.{_encode(done.stdout)}"

    def _answer(self, request: Request) -> Answer:
        form = parse_qs(request.body.decode() or request.query)
        if form.get("service") != [SERVICE]:
            return Answer(400)
        if request.method == "POST":
            known = form.get("refresh_token", [""])[0] in self.identity_tokens
            known = known and form.get("grant_type") == ["refresh_token"]
        else:
            login = request.headers.get("Authorization", "")
            known = login in {basic(name, password) for name, password in self.users.items()}
            if login and not known:
                return Answer(401)
        if request.method == "POST" and not known:
            return Answer(401)
        repository = form["scope"][0].split(":")[1]
        actions = ["pull"] if known else []
        token = self.token(repository, *actions, lifetime_s=self.lifetime_s)
        self.given.append(token)
        name = "access_token" if request.method == "POST" else "token"
        return Answer(200, {}, json.dumps({name: token}).encode())


def basic(name: str, password: str) -> str:
    """Return the Authorization header of HTTP Basic."""
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
