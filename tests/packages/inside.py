"""Checks inside the root file system, one function per step of a package's life.

Python's own library and `tests.parts` are all there is: no pytest, and no virtual environment.
"""

from __future__ import annotations

import itertools
import pwd
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from hpcimg import __version__ as FIRST  # noqa: N812  (of the checkout, which the packages are of)
from tests.parts import images, node
from tests.parts.daemon import wait_until
from tests.parts.node import Node
from tests.parts.webserver import WebServer

LIB = Path("/usr/lib/hpcimg")
CONF = Path("/etc/hpcimg/hpcimg.conf")
SITE = Path("/etc/hpcimg/conf.d/site.conf")
CACHE = Path("/var/cache/hpcimg")
LATER = "99.0"


class PackagedNode(Node):
    """This root file system as a node: hooks and configuration where the package has them."""

    def __init__(self) -> None:
        node.PROLOG = LIB / "prolog/hpcimg-prolog"
        node.TASK_PROLOG = LIB / "prolog/hpcimg-task-prolog"
        node.EPILOG = LIB / "epilog/hpcimg-epilog"
        super().__init__(Path(mkdtemp()))
        self.cache, self.state, self.conf = CACHE, Path("/run/hpcimg"), CONF
        # There is no syslog here.
        SITE.write_text(f"[log]\nto = {self.log_file}\n")

    def configure(self, settings: str = "") -> None:
        """Keep the package's configuration."""

    def environment(self, job: int | str, comment: str | None = None) -> dict[str, str]:
        environment = super().environment(job, comment)
        del environment["HPCIMG_CONF"]
        return environment


class Jobs:
    """Jobs that start one after another until the block ends; half of them have an image."""

    def __init__(self, place: PackagedNode, warm: str) -> None:
        self.wrong: list[str] = []
        self.ended = 0
        self._place, self._warm = place, warm
        self._thread = threading.Thread(target=self._run)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self) -> None:
        ended = self.ended
        wait_until(
            lambda: bool(self.wrong) or self.ended > ended + 10, timeout_s=60, what="jobs that end"
        )

    def _run(self) -> None:
        jobs = itertools.count(100)
        while not self._stop.is_set() and not self.wrong:
            try:
                self._one(next(jobs))
            except Exception:
                self.wrong.append(traceback.format_exc())
            self.ended += 1

    def _one(self, job: int) -> None:
        # Both ways: that of a hit, and the whole program, which says what is wrong.
        hit = job % 2
        task = self._place.stage(job, f"container:{self._warm if hit else '/no/such.sif'}")
        assert task.code == 0 if hit else "there is no file" in task.printed, task
        self._place.epilog(job)


def output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def put_image(web: WebServer, name: str) -> str:
    image = images.make_sif(Path(mkdtemp()) / name, {"name": name.encode()})
    return web.put(f"/{name}", image.read_bytes(), etag='"1"')


def installed() -> None:
    """Check that everything is in its place, and that a job gets its image."""
    account = pwd.getpwnam("hpcimg")
    assert account.pw_uid < 1000
    assert account.pw_shell.endswith("nologin")
    assert not Path(account.pw_dir).exists()
    assert output("hpcimg", "--version") == f"hpcimg {FIRST}\n"
    for page in ("man1/hpcimg.1", "man5/hpcimg.conf.5", "man8/hpcimg-prolog.8"):
        text = output("zcat", f"/usr/share/man/{page}.gz")
        assert ".Dd" in text
    assert "key" in CONF.read_text()
    output("hpcimg", "config")
    check_compiled()
    place = PackagedNode()
    with WebServer() as web:
        for job, how in ((1, "fetched"), (2, "hit")):
            task = place.stage(job, f"container:{put_image(web, 'x.sif')}")
            assert task.code == 0, task.printed
            assert place.record(job)["images"][0]["source"] == how
            place.epilog(job)


def check_compiled() -> None:
    """Check that there is byte code for all modules, for the Python that runs them."""
    release = (LIB / "current").resolve()
    tag = output(str(release / "python"), "-c", "import sys; print(sys.implementation.cache_tag)")
    for source in release.rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.{tag.strip()}.pyc"
        assert compiled.exists(), compiled


def deb_upgraded() -> None:
    """Upgrade while a Prolog runs and others start: none of them sees two releases mixed."""
    CONF.write_text("[cache]\nmax_size = 1G\n")
    place = PackagedNode()
    with WebServer() as web:
        warm, cold = put_image(web, "warm.sif"), put_image(web, "cold.sif")
        assert place.stage(1, f"container:{warm}").code == 0
        with web.hold("/cold.sif", after_bytes=4096) as held:
            prolog = place.start_prolog(2, f"container:{cold}")
            held.wait_reached()
            with Jobs(place, warm) as jobs:
                jobs.wait_for_more()
                before = jobs.ended
                output("sh", "-c", "dpkg --install /srv/later/0/hpcimg_*.deb")
                assert jobs.wrong or jobs.ended > before
                # Whatever else happens before that Prolog ends.
                output(str(LIB / "set-up"))
                output(str(LIB / "set-up"))
                jobs.wait_for_more()
        assert jobs.wrong == [], "".join(jobs.wrong)
        printed, _ = prolog.communicate(timeout=60)
        assert (prolog.returncode, printed) == (0, "")
        assert place.task(2).code == 0, place.task(2).printed
        assert {job for _, job in place.leases()} == {"1", "2"}
        # The cache that the release before filled is the next one's.
        assert place.stage(3, f"container:{cold}").code == 0
        assert place.record(3)["images"][0]["source"] == "hit"
        for job in (1, 2, 3):
            place.epilog(job)
        assert place.leases() == set()
    check_later()


def check_later() -> None:
    assert output("hpcimg", "--version") == f"hpcimg {LATER}\n"
    assert "max_size = 1G" in CONF.read_text()
    check_compiled()
    # This one and the one before, now that no hook is running.
    output(str(LIB / "set-up"))
    assert len(list((LIB / "releases").iterdir())) == 2


def python_changed() -> None:
    """Change the Python: the package sets itself up again, and until then the hooks find one."""
    before = (LIB / "current").resolve()
    (before / "python").unlink()
    assert output("hpcimg", "--version") == f"hpcimg {LATER}\n"
    output("dpkg-trigger", "--by-package=python3", "--no-await", "/usr/bin/python3")
    output("dpkg", "--triggers-only", "hpcimg")
    assert (LIB / "current").resolve() != before
    assert ((LIB / "current") / "python").exists()
    check_later()


def removed() -> None:
    """Check that the package's files are gone, and cache and configuration are kept."""
    output("apt-get", "remove", "hpcimg")
    check_removed()
    assert "max_size = 1G" in CONF.read_text()


def check_removed() -> None:
    assert not LIB.exists(), list(LIB.rglob("*"))
    assert list((CACHE / "images").iterdir()) != []
    pwd.getpwnam("hpcimg")


def purged() -> None:
    """Check that the configuration is gone as well, and nothing of the package is left."""
    assert SITE.exists()
    output("apt-get", "purge", "hpcimg")
    check_removed()
    assert not CONF.parent.exists()
    found = output(
        "find", "/usr", "/etc", "/var/lib", "-xdev", "-newer", "/before", "-iname", "*hpcimg*"
    )
    assert found == ""


def rpm_upgraded() -> None:
    """Upgrade the RPM likewise, without hooks that start in the meantime."""
    check_later()
    place = PackagedNode()
    with WebServer() as web:
        assert place.stage(1, f"container:{put_image(web, 'x.sif')}").code == 0
        place.epilog(1)


def rpm_removed() -> None:
    """Check the same for the RPM; rpm keeps a changed configuration file under another name."""
    check_removed()
    assert "max_size = 1G" in CONF.with_name("hpcimg.conf.rpmsave").read_text()


if __name__ == "__main__":
    steps = [installed, deb_upgraded, python_changed, removed, purged, rpm_upgraded, rpm_removed]
    {step.__name__.replace("_", "-"): step for step in steps}[sys.argv[1]]()
