"""Time the download of a large file next to curl: http, https, and S3 with signatures.

From a real registry and a real object store on loopback to the same disk, both flushed to it.
hpcimg checks the file as it arrives, as Prolog would: this is the whole command, start-up
included. What counts is the ratio of medians within one run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.warm_hit import Case, measure, show
from tests.parts import images
from tests.parts.daemon import PATH, missing_commands
from tests.parts.node import ROOT, Node
from tests.parts.objectstore import PRIVATE, SITE, ObjectStore
from tests.parts.registry import Registry

MIB = 1 << 20


class Bench:
    """A node, and a file that curl writes beside it."""

    def __init__(self, directory: Path) -> None:
        self.node = Node(directory)
        self._file = directory / "by-curl"

    def cases(self, name: str, uri: str, curl: list[str], **environment: str) -> list[Case]:
        """Return the two cases for one kind of server."""
        argv = shlex.join(["curl", "-sSf", "-o", str(self._file), *curl])
        by_hand = ["/bin/sh", "-c", f"{argv} && sync {shlex.quote(str(self._file))}"]
        stage = [str(ROOT / "bin" / "hpcimg"), "stage", uri]
        return [
            Case(f"curl and sync, {name}", by_hand, lambda: self._empty(environment)),
            Case(f"hpcimg stage, {name}", stage, lambda: self._empty(environment)),
        ]

    def _empty(self, environment: dict[str, str]) -> dict[str, str]:
        self._file.unlink(missing_ok=True)
        shutil.rmtree(self.node.cache, ignore_errors=True)
        self.node.reboot()
        os.sync()
        return {**self.node.environment(1), "PATH": PATH, **environment}


@contextmanager
def served(path: Path, *, tls: bool) -> Iterator[tuple[str, Path]]:
    """Serve a file from a registry; yield its address and the certificate to trust."""
    with Registry(tls=tls) as registry, path.open("rb") as file:
        digest = registry.push_blob("bench", file)
        yield f"{registry.url}/v2/bench/blobs/{digest}", registry.certificate


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    options = parser.parse_args()
    missing = Registry.missing() or ObjectStore.missing() or missing_commands("curl")
    if missing := missing or images.missing():
        print(missing)
        return 1
    with tempfile.TemporaryDirectory(prefix="hpcimg-bench-", dir="/var/tmp") as made:
        directory = Path(made)
        directory.chmod(0o755)
        path = images.make_sif(directory / "large.sif", {"n": b"x"}, size_bytes=options.size * MIB)
        bench = Bench(directory)
        # The unprivileged account must be able to read it.
        certificate = directory / "certificate.pem"
        for name, tls in (("http", False), ("https", True)):
            with served(path, tls=tls) as (url, original):
                if tls:
                    shutil.copyfile(original, certificate)
                trust = ["--cacert", str(certificate)] if tls else []
                environment = {"REQUESTS_CA_BUNDLE": str(certificate)} if tls else {}
                cases = bench.cases(name, url, [*trust, url], **environment)
                show(rows := measure(cases, options.rounds), rows[0].name)
        with ObjectStore() as store:
            store.put(PRIVATE, "large.sif", path.read_bytes())
            keys = directory / "keys"
            keys.write_text(SITE.file)
            bench.node.configure(f"[s3]\nurl = {store.url}\nauth_file = {keys}\nshared = yes\n")
            signed = [
                "--aws-sigv4",
                "aws:amz:us-east-1:s3",
                "--user",
                f"{SITE.access}:{SITE.secret}",
            ]
            url = f"{store.url}/{PRIVATE}/large.sif"
            cases = bench.cases("S3, signed", f"s3://{PRIVATE}/large.sif", [*signed, url])
            show(rows := measure(cases, options.rounds), rows[0].name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
