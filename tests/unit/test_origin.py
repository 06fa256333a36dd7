"""The accounts that fetch, convert and verify an image."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcimg.cache import directories
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache, Limits
from hpcimg.config import load as config
from hpcimg.errors import ConfigError, NodeError
from hpcimg.fetch.contract import Fetched
from hpcimg.origin import Origin
from hpcimg.reference import Reference
from hpcimg.site.mirrors import Location
from hpcimg.site.services import Service
from hpcimg.worker import accounts, monitor
from hpcimg.worker.accounts import Account
from hpcimg.worker.process import Sandbox

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
USER = Account(5, 60, ())


@AS_ROOT
def test_what_a_user_may_read_is_not_converted_or_verified_as_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose processes could look into that one, and keep its files open."""
    conf = tmp_path / "hpcimg.conf"
    conf.write_text("[stage]\naccount = daemon\n")
    cache = Cache(Layout(f"{tmp_path}/c", f"{tmp_path}/s"), Limits(1 << 30, 9, 8, 0, 0.0), 1.0)
    directories.prepare(cache.layout)
    origin = Origin(
        config.load(str(conf)),
        cache,
        Reference("oci", "/x"),
        Service((Location("", insecure=False, auth_file="", shared=False),)),
        time.monotonic() + 9,
        USER,
        owner=5,
        as_user=True,
    )
    uids = []

    def seen(*arguments: object) -> Fetched:
        sandbox = arguments[-1]
        assert isinstance(sandbox, Sandbox)
        assert sandbox.account
        uids.append(sandbox.account.uid)
        return Fetched(0, "")

    for name in ("fetch", "verify"):
        monkeypatch.setattr(monitor, name, seen)
    monkeypatch.setattr(monitor, "convert", contextmanager(lambda *given: iter([seen(*given)])))
    origin.fetch(0, None, validator="")  # type: ignore[arg-type]
    with origin.convert(0, image_config="", sizes=[], progress=lambda *_: None):
        pass
    origin.verify(0, source="")
    assert uids == [USER.uid, 1, 1]


@AS_ROOT
def test_accounts_that_serve_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="account is root"):
        accounts.unprivileged("root")
    monkeypatch.setattr(accounts, "DEFAULT", "no-such-account")
    with pytest.raises(ConfigError, match=r"no account no-such-account.*useradd --system"):
        accounts.unprivileged("")
    for uid, gid in ((0, None), (3_999_999_999, 0), (0, 5)):
        with pytest.raises(NodeError):
            accounts.of_user(uid, gid)
    # What the node knows goes before what is said.
    known = accounts.of_user(1, 77_777)
    assert known
    assert known.gid == 1
    assert accounts.of_user(3_999_999_999, 77_777) == Account(3_999_999_999, 77_777, ())
