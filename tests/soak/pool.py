"""The images that jobs of a soak request: from each source, for all users, one, or nobody."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.parts.images import make_sif
from tests.parts.ociimages import Layer, make_layer, push_image
from tests.parts.registry import Registry
from tests.parts.site import Site
from tests.parts.slurmclient import USERS
from tests.parts.webfaults import Html

MIB = 1 << 20
LIMIT = 4 * MIB  # of one image


@dataclass
class Image:
    """One image that jobs ask for.

    `texts` are what its file "hello" has said so far, the latest last. `readers` may read it.
    All others are refused with these words.
    """

    name: str
    text_of_comment: str
    readers: tuple[str, ...] = USERS
    refused: str = ""
    texts: list[str] = field(default_factory=list)


class Pool:
    """All images by name, on the web server and both registries of a site.

    `private` is the registry that requires a login. `guesses` are what private images are called
    in a cache, "UID NAME" but for the uid. `faulty` are the paths at the web server that may
    misbehave.
    """

    def __init__(self, site: Site, private: Registry, choose: random.Random) -> None:
        self.images: list[Image] = []
        self.guesses: list[str] = []
        self.faulty: list[str] = []
        self._site = site
        self._private = private
        self._choose = choose
        self._base = make_layer({"base": choose.randbytes(MIB)})
        self._rolling: list[Callable[[], None]] = []
        self._shared()
        self._private_ones()
        self._refused()

    def renew(self) -> None:
        """Publish a new version under a name that refers to the latest one."""
        self._choose.choice(self._rolling)()

    def _add(self, name: str, text_of_comment: str, **fields: object) -> Image:
        image = Image(name, text_of_comment, **fields)  # type: ignore[arg-type]
        self.images.append(image)
        return image

    def _shared(self) -> None:
        for number in range(8):
            self._web(f"web-{number}")
        self._rolling.append(self._web("web-rolling"))
        for number in range(4):
            self._oras(self._site.registry, f"oras-{number}", "1")
        self._rolling.append(self._oras(self._site.registry, "oras-rolling", "latest"))
        for name in ("app", "tool", "lib"):
            for tag in "1", "2":
                self._docker(self._site.registry, name, tag)
        self._rolling.append(self._docker(self._site.registry, "docker-rolling", "latest"))

    def _private_ones(self) -> None:
        for user in USERS:
            for number in range(2):
                name = f"file-of-{user}-{number}"
                path = self._sif(name)
                path.chmod(0o600)
                uid = self._site.homes.users[user]
                os.chown(path, uid, -1)
                image = self._add(name, str(path), readers=(user,), refused="may not be read")
                image.texts.append(name)
                self._guess(path)
        known = {"readers": USERS[:2], "refused": "may not be read"}
        for number in range(2):
            self._oras(self._private, f"oras-private-{number}", "1", **known)
            self._docker(self._private, f"docker-private-{number}", "1", **known)

    def _refused(self) -> None:
        site, nothing = self._site, "there is nothing at"
        hosts = site.registry.host, self._private.host
        site.web.put("/page.sif", b"")
        site.web.handle("/page.sif", lambda request: Html()(None, request, None))  # type: ignore[arg-type]
        for name, text_of_comment, words in (
            ("no-scheme", "ubuntu:22.04", "did you mean docker://ubuntu:22.04"),
            ("no-such-scheme", "gopher://x.example.org/y", "gopher:// is not known"),
            ("no-web", site.web.url("/none.sif"), nothing),
            ("no-tag", f"oras://{hosts[0]}/oras-0:9.9", nothing),
            ("no-repository", f"docker://{hosts[0]}/none:1", nothing),
            ("no-file", f"{site.directory}/none.sif", "there is no file"),
            ("a-page", site.web.url("/page.sif"), "is not an image"),
            ("too-large", self._put("too-large", self._sif("large", LIMIT + 1)), "is too large"),
            ("wrong-arch", self._put("wrong-arch", self._sif("arch", arch="ppc64le")), "ppc64le"),
        ):
            self._add(name, text_of_comment, readers=(), refused=words)

    def _web(self, name: str) -> Callable[[], None]:
        image = self._add(name, self._site.web.url(f"/{name}.sif"))
        self.faulty.append(f"/{name}.sif")

        def put() -> None:
            text = f"{name} version {len(image.texts)}"
            image.texts.append(text)
            self._put(name, self._sif(text, self._size()))

        put()
        return put

    def _put(self, name: str, path: Path) -> str:
        data = path.read_bytes()
        path.unlink()
        return self._site.web.put(f"/{name}.sif", data, etag=f'"{hashlib.md5(data).hexdigest()}"')

    def _oras(
        self, registry: Registry, name: str, tag: str, **fields: object
    ) -> Callable[[], None]:
        image = self._add(name, f"oras://{registry.host}/{name}:{tag}", **fields)

        def push() -> None:
            if not registry.is_up:
                return
            text = f"{name} version {len(image.texts)}"
            path = self._sif(text, self._size())
            image.texts.append(text)
            registry.push_sif(path, name, tag)
            if fields:
                self._guess(path)
            path.unlink()

        push()
        return push

    def _docker(
        self, registry: Registry, name: str, tag: str, **fields: object
    ) -> Callable[[], None]:
        image = self._add(f"{name}-{tag}", f"docker://{registry.host}/{name}:{tag}", **fields)

        def push() -> None:
            if not registry.is_up:
                return
            text = f"{name} {tag} version {len(image.texts)}"
            image.texts.append(text)
            layers: list[Layer] = [self._base, make_layer({"hello": f"{text}\n".encode()})]
            pushed = push_image(registry, name, tag, layers)
            if fields:
                parts = " ".join(part.removeprefix("sha256:") for part in pushed.parts)
                key = f"layers-sha256-{hashlib.sha256(parts.encode()).hexdigest()}"
                self.guesses.append(f"{key}-squashfs.squashfs")
                self.guesses.append(
                    f"blob-sha256-{hashlib.sha256(layers[1].data).hexdigest()}.blob"
                )

        push()
        return push

    def _guess(self, path: Path) -> None:
        self.guesses.append(f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}.sif")

    def _size(self) -> int:
        return self._choose.randrange(100_000, 2 * MIB)

    def _sif(self, text: str, size_bytes: int = 0, *, arch: str = "") -> Path:
        path = self._site.directory / f"{text.replace(' ', '-')}.sif"
        content = {"hello": f"{text}\n".encode(), "unique": os.urandom(16)}
        return make_sif(path, content, size_bytes=size_bytes, arch=arch)
