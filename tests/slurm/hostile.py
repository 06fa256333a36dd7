"""The jobs of a hostile user: a list of attacks, each a function named after it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.parts import layers
from tests.parts.cluster import slurm_version
from tests.parts.images import make_sif
from tests.parts.layouts import config_of, in_blobs, write_archive
from tests.parts.ociimages import CONFIG, INDEX, Layer
from tests.parts.site import Site
from tests.parts.webanswer import Answer, Stop
from tests.parts.webregistry import path_of_blob, put_image, put_manifest, put_sif
from tests.parts.webserver import WebServer

MIB = 1 << 20
GIB = 1 << 30
_INTRUDER = Path(__file__).with_name("intruder.py")
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_METADATA = "http://169.254.169.254/latest/meta-data/"


class Attempt(NamedTuple):
    """One hostile job. `ends` is the state that it has to end in, "" for any.

    `asks` is a path at the web server: once it was asked for, the job is at work.
    """

    comment: str
    script: str = "true"
    ends: str = "FAILED"
    options: tuple[str, ...] = ()
    asks: str = ""


@dataclass
class Ground:
    """Where attacks are made from: what the hostile user has on the node and on servers.

    `directory` is the user's own, `hung` a file system of theirs that answers nobody (None
    where there is no FUSE), `tls` a server that the nodes trust, `layers` those of an
    archive of the other user's. `victim` is what the other user asks for next, by its SIF file.
    """

    site: Site
    tls: WebServer
    directory: Path
    uid: int
    hung: Path | None
    layers: tuple[Layer, ...]
    cache_bytes: int
    victim: bytes = b""
    held: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def web(self) -> WebServer:
        """The web server, which also stands in for a registry."""
        return self.site.web

    def own(self, name: str, data: bytes, *, mode: int = 0o600) -> Path:
        """Create a file of the user's."""
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(mode)
        shutil.chown(path, self.uid)
        return path

    def own_sif(self, number: int) -> Path:
        """Create an image that only this user can read."""
        path = make_sif(self.directory / f"own-{number}.sif", {"hello": b"%d" % number})
        return self.own(path.name, path.read_bytes())

    def program(self, *arguments: str) -> str:
        """Return the line of a job that runs the intruder on its node."""
        top = f"{self.site.directory}/$SLURMD_NODENAME"
        words = [word.replace("CACHE", f"{top}/cache") for word in arguments]
        words = [word.replace("STATE", f"{top}/state") for word in words]
        return f"TMPDIR={self.directory} /usr/bin/python3 {self.directory}/intruder.py " + " ".join(
            words
        )


@contextlib.contextmanager
def at_work(on: Ground) -> Iterator[None]:
    """Prepare what the attacks need; end what they leave running."""
    on.own(_INTRUDER.name, _INTRUDER.read_bytes(), mode=0o644)
    try:
        yield
    finally:
        for process in on.held:
            process.kill()
            process.communicate()


# Another's bytes


def somebodys_config_with_another_layer(on: Ground, number: int) -> Attempt:
    evil = layers.layer(layers.file("hello", b"evil %d\n" % number))
    names = [in_blobs(layer) for layer in on.layers]
    files = {name: layer.data for name, layer in zip(names, on.layers, strict=True)}
    path = on.directory / f"evil-{number}.tar"
    comment = write_archive(path, {**files, names[-1]: evil}, config=config_of(*on.layers))
    return Attempt(comment, ends="")


def the_digest_of_another_a_byte_a_second(on: Ground, number: int) -> Attempt:
    attempt = _stalling(on, f"evil/slow-{number}", on.victim, bytes_per_s=1)
    return attempt._replace(ends="")  # where it comes too late, the image is there already


def own_private_image_and_all_files_of_the_node(on: Ground, number: int) -> Attempt:
    script = on.program("tamper", "CACHE", "STATE")
    return Attempt(f"container:{on.own_sif(number)}", script, ends="COMPLETED")


def own_workers(on: Ground, number: int) -> Attempt:
    """Look for the process that copies an image of this user's, stop it and write to its files."""
    inner = f"sbatch --nodelist=$SLURMD_NODENAME --comment=container:{on.own_sif(number)}"
    return Attempt("", f"{inner} --wrap=true\n{on.program('seize', 'CACHE', '10')}", "COMPLETED")


# What costs others time or room


def a_large_length_and_four_bytes(on: Ground, number: int) -> Attempt:
    data = b"%032d" % number * 64
    size = on.cache_bytes * 9 // 10
    return _stalling(on, f"evil/large-{number}", data, size_bytes=size)


def ninety_five_gigabytes(on: Ground, number: int) -> Attempt:
    data = b"%032d" % number * 64
    return _stalling(on, f"evil/huge-{number}", data, size_bytes=95 * GIB)


def _stalling(
    on: Ground, repository: str, data: bytes, *, size_bytes: int = 0, bytes_per_s: float = 0
) -> Attempt:
    comment = put_sif(on.web, repository, data, size_bytes=size_bytes)
    stop = None if bytes_per_s else Stop(4, "pause", 3600)
    headers = {"Content-Length": str(size_bytes or len(data))}
    answer = Answer(200, headers, data, stop=stop, bytes_per_s=bytes_per_s)
    path = path_of_blob(repository, data)
    on.web.handle(path, lambda _: answer)
    return Attempt(comment, asks=path)


def a_bomb(on: Ground, number: int) -> Attempt:
    """A layer of a few KiB that unpacks to more than ten times the cache."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as packed:
        member = tarfile.TarInfo(f"zeros-{number}")
        member.size = 11 * on.cache_bytes
        packed.write(member.tobuf())
        for _ in range(member.size // MIB):
            packed.write(bytes(MIB))
    config = (CONFIG, config_of())
    layer = (_LAYER, made.getvalue())
    return Attempt(put_image(on.web, f"evil/bomb-{number}", config, [layer]))


def an_endless_answer(on: Ground, number: int) -> Attempt:
    path = f"/endless-{number}.sif"
    on.web.handle(path, lambda _: Answer(200, body=bytes(1 << 16), framing="close", endless=True))
    return Attempt(f"container:{on.web.url(path)}")


def indexes_in_a_circle(on: Ground, number: int) -> Attempt:
    names = [f"sha256:{number:063x}{which}" for which in (0, 1)]
    texts = []
    for name in names:
        entries = [{"mediaType": INDEX, "digest": name, "size": 300}]
        fields = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        texts.append(json.dumps(fields).encode())
    repository = f"evil/circle-{number}"
    for name, text in zip(names, reversed(texts), strict=True):
        on.web.put(f"/v2/{repository}/manifests/{name}", text, content_type=INDEX)
    return Attempt(put_manifest(on.web, "docker", repository, texts[0], INDEX))


def a_manifest_of_a_hundred_thousand_levels(on: Ground, number: int) -> Attempt:
    text = b'{"layers":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return Attempt(put_manifest(on.web, "docker", f"evil/deep-{number}", text, INDEX))


# Paths


def a_pipe_a_device_a_process(on: Ground, number: int) -> Attempt:
    """Also a link to a file of root's, a directory, and what a process has open."""
    fifo = on.directory / "fifo"
    if not fifo.exists():
        subprocess.run(["mkfifo", "-m", "666", str(fifo)], check=True)
    link = on.directory / "link.sif"
    if not link.is_symlink():
        link.symlink_to("/etc/shadow")
    paths = (fifo, "/dev/zero", "/proc/self/mem", link, on.directory, "/proc/self/fd/0", "/dev/tty")
    return Attempt(f"container:{paths[number % len(paths)]}")


def a_leased_file(on: Ground, number: int) -> Attempt:
    path = on.own(f"leased-{number}.sif", on.victim, mode=0o644)
    argv = ["/usr/bin/python3", str(on.directory / "intruder.py"), "lease", str(path)]
    holder = subprocess.Popen(argv, user=on.uid, group=on.uid, stdout=subprocess.PIPE, env={})
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    on.held.append(holder)
    return Attempt(f"container:{path}")


def a_file_system_that_never_answers(on: Ground, number: int) -> Attempt | None:
    if on.hung is None:
        return None
    forms = ("{}/x.sif", "{}/a/b/x.sif", "oci:{}/layout", "docker-archive:{}/x.tar", "{}")
    return Attempt("container:" + forms[number % len(forms)].format(on.hung))


def a_home_that_never_answers(on: Ground, number: int) -> Attempt | None:
    """It is searched for a login to the registry."""
    if on.hung is None:
        return None
    path = f"/v2/evil/login-{number}/manifests/1"
    on.web.handle(path, lambda _: Answer(401, {"WWW-Authenticate": 'Basic realm="x"'}))
    return Attempt(f"container:docker://127.0.0.1:{on.web.port}/evil/login-{number}:1")


# Policy, addresses


def past_a_deny(on: Ground, number: int) -> Attempt:
    port, digest = on.web.port, "a" * 64
    spellings = (
        f"http://127.0.0.1:{port}/public/../denied/x.sif",
        f"http://127.0.0.1:{port}/public/%2e%2e/denied/x.sif",
        f"HTTP://127.0.0.1:{port}//denied/x.sif",
        f"http://127.0.0.1:{port}/%64enied/x.sif",
        f"http://u:p@127.0.0.1:{port}/denied/x.sif",
        f"docker://a@sha256:{digest}@127.0.0.1:{port}/denied/x",
        f"oras://127.0.0.1:{port}/public/../denied/x:1",
        f"docker://127.0.0.1:{port}/denied/x:1",
    )
    return Attempt(f"container:{spellings[number % len(spellings)]}")


def a_redirect_to_where_nobody_may_go(on: Ground, number: int) -> Attempt:
    to = (_METADATA, "file:///etc/shadow", "http://[::ffff:169.254.169.254]/", "gopher://x/")
    path = f"/away-{number}"
    on.web.handle(path, lambda _: Answer(302, {"Location": to[number % len(to)]}))
    return Attempt(f"container:{on.web.url(path)}")


def a_redirect_from_https_to_http(on: Ground, number: int) -> Attempt:
    to = on.web.put(f"/plain-{number}.sif", on.victim)
    path = f"/away-{number}"
    on.tls.handle(path, lambda _: Answer(302, {"Location": to}))
    return Attempt(f"container:{on.tls.url(path)}")


# Archives


def paths_that_leave_the_root(on: Ground, number: int) -> Attempt:
    name, away = f"escaped-{number}", on.site.directory
    out = "../" * 20 if number % 2 else ""
    layer = layers.layer(
        layers.symlink("up", "../../../../../../.."),
        layers.symlink("away", str(away)),
        layers.file(f"up{away}/{name}", b"1"),
        layers.file(f"away/{name}", b"2"),
        layers.file(f"{out}{str(away)[1:]}/{name}", b"3"),
        layers.file(f"{away}/{name}", b"4"),
        layers.special("device", tarfile.BLKTYPE),
        layers.link("shadow", "/etc/shadow" if out else f"away/{name}"),
    )
    config = (CONFIG, config_of())
    return Attempt(put_image(on.web, f"evil/paths-{number}", config, [(_LAYER, layer)]), ends="")


# Words


def misspellings(on: Ground, number: int) -> Attempt:
    words = [f"container:{on.web.url(f'/misspelt-{number}-{which}.sif')}" for which in range(10)]
    return Attempt(" ".join(words))


def an_odd_comment(on: Ground, number: int) -> Attempt:
    comments = (
        "container:" + "x" * 900,
        "container:/\x1b]0;mine\x07\x1b[2Jx.sif",
        "container:/a\nexport LD_PRELOAD=/tmp/evil.so",
        '{"container":' * 70 + "1" + "}" * 70,
        '{"container":{"a":[1e999,NaN]}}',
        "container:$(reboot) container:`reboot` container:/x;exit 43",
        "container:docker://[::1%25lo]:1/x container:http://[/x.sif",
        "container:/\udcff\udcfe/x.sif",
    )
    return Attempt(comments[number % len(comments)])


def an_extra_that_submits_itself(on: Ground, number: int) -> Attempt | None:
    """Two comments that say different things, from within a job."""
    if slurm_version() < (23, 11):
        return None
    extra = f"--extra=container:{on.directory}/none-{number}.sif"
    inner = shlex.join(["sbatch", extra, "--comment=container:/none.sif", "--wrap=true"])
    return Attempt("", inner, "COMPLETED")


ATTACKS: tuple[Callable[[Ground, int], Attempt | None], ...] = (
    somebodys_config_with_another_layer,
    the_digest_of_another_a_byte_a_second,
    a_file_system_that_never_answers,
    own_private_image_and_all_files_of_the_node,
    own_workers,
    a_large_length_and_four_bytes,
    ninety_five_gigabytes,
    a_pipe_a_device_a_process,
    past_a_deny,
    a_leased_file,
    a_home_that_never_answers,
    a_redirect_to_where_nobody_may_go,
    a_redirect_from_https_to_http,
    indexes_in_a_circle,
    a_manifest_of_a_hundred_thousand_levels,
    paths_that_leave_the_root,
    misspellings,
    an_odd_comment,
    a_bomb,
    an_endless_answer,
    an_extra_that_submits_itself,
)
