"""Registries with their own certificate authority, and with client certificates."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg.errors import ConfigError
from hpcimg.http import certsd
from hpcimg.http.certsd import Certificates
from tests.integration.checks import refused, staged
from tests.parts.registry import Registry
from tests.parts.users import NodeWithUsers
from tests.parts.webserver import make_certificate

MISSING = NodeWithUsers.missing() or Registry.missing()
USERS = {"hpcimg-jo": 3_000_001}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificate of a node, and its key for root alone."""
    directory = tmp_path_factory.mktemp("client")
    _, key = make_certificate(directory)
    key.chmod(0o600)
    return directory


@pytest.fixture
def registry(client: Path) -> Iterator[Registry]:
    with Registry(tls=True, clients=client / "certificate.pem") as registry:
        yield registry


@pytest.fixture
def comment(registry: Registry, sif: bytes, tmp_path: Path) -> str:
    (tmp_path / "x.sif").write_bytes(sif)
    registry.push_sif(tmp_path / "x.sif", "lab/x", "1")
    return f"container:oras://{registry.host}/lab/x:1"


def certs_d(node: NodeWithUsers, directory: str, host: str) -> Path:
    """Make the directory of a registry below the node's /etc."""
    made = node.directory / "etc" / directory / "certs.d" / host
    made.mkdir(parents=True)
    return made


@pytest.mark.skipif(MISSING != "", reason=MISSING)
@pytest.mark.parametrize("program", ["containers", "docker"])
def test_the_nodes_certificate(
    open_directory: Path, registry: Registry, client: Path, comment: str, sif: bytes, program: str
) -> None:
    node = NodeWithUsers(open_directory, USERS)
    node.configure("[stage]\ndeadline = 20s\n")
    refused(node, 1, comment, "Forbidden", "cannot be trusted", "/etc/containers/certs.d/HOST/")
    place = certs_d(node, program, registry.host)
    shutil.copy(registry.certificate, place / "ca.crt")
    node.configure("[stage]\ndeadline = 20s\nerror_ttl = 0\n")
    assert node.stage(2, comment).code == 1  # it asks for a certificate
    shutil.copy(client / "certificate.pem", place / "node.cert")
    refused(node, 3, comment, "ConfigError", "node.cert has no key")
    shutil.copy(client / "key.pem", place / "node.key")
    task = staged(node, 4, comment, sif, how="fetched")
    assert task.image.parent == node.cache / "images"
    assert "PRIVATE KEY" not in node.log()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Both directories, with none of a registry's yet."""
    first, second = tmp_path / "containers", tmp_path / "docker"
    monkeypatch.setattr(certsd, "DIRECTORIES", (str(first), str(second)))
    return first, second


def test_the_first_directory_that_knows_the_registry_counts(places: tuple[Path, Path]) -> None:
    assert certsd.read("h:5000") == Certificates()
    for place, text in zip(places, ("one", "two"), strict=True):
        (place / "h:5000").mkdir(parents=True)
        (place / "h:5000" / f"{text}.crt").write_text(text)
    assert certsd.read("h:5000") == Certificates("one")
    for host in ("h", "..", ".", "h:5000/..", "H:5000"):
        assert certsd.read(host) == Certificates()
    (places[0] / "h:5000" / "two.crt").write_text("two")
    (places[0] / "h:5000" / "notes.txt").write_text("?")
    assert certsd.read("h:5000") == Certificates("one\ntwo")


def test_what_is_no_certificate_is_said(places: tuple[Path, Path], client: Path) -> None:
    certificate = (client / "certificate.pem").read_text()
    for given in (
        Certificates("no certificate"),
        Certificates(client="neither"),
        Certificates(client=certificate),
    ):
        with pytest.raises(ConfigError, match=r"the certificates of h:1 cannot be used: .*"):
            certsd.context(given, "h:1")
    assert certsd.context(Certificates(certificate), "h:1").get_ca_certs()


def test_a_key_that_wants_a_password_asks_nobody(client: Path, tmp_path: Path) -> None:
    argv = ["openssl", "ec", "-in", str(client / "key.pem"), "-aes128", "-passout", "pass:secret"]
    locked = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    text = (client / "certificate.pem").read_text() + locked
    with pytest.raises(ConfigError):
        certsd.context(Certificates(client=text), "h")
