"""What is shipped for systemd, tmpfiles.d and logrotate, checked by their own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.parts.node import ROOT

ETC = ROOT / "etc"
SERVICES = sorted((ETC / "systemd").glob("*.service"))
UNITS = sorted((ETC / "systemd").iterdir())
_EXPOSURE_MAX = 3.0  # of 10, as systemd-analyze counts
# They start processes in namespaces of their own, as Prolog does, which takes CAP_SYS_ADMIN.
_EXPOSURE_OF = {"hpcimg-prefetch": 3.6, "hpcimg@": 4.5}
HELPER = "hpcimg@"


def needs(program: str) -> pytest.MarkDecorator:
    path = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    return pytest.mark.skipif(path is None, reason=f"not installed here: {program}")


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_without_mistakes(unit: Path, tmp_path: Path) -> None:
    for path in UNITS:  # a timer needs its service beside it; what they start is not here
        text = re.sub(r"/usr/lib/hpcimg/bin/[\w-]+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    # Of a template, one instance.
    name = unit.name.replace("@.", "@1.")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "hpcimg" in line]
    assert (done.returncode, ours) == (0, [])


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_services_are_hardened(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze has no offline check: {done.stderr.strip()}")
    assert float(found[1]) <= _EXPOSURE_OF.get(unit.stem, _EXPOSURE_MAX)


def test_each_service_has_a_timer() -> None:
    timers = {unit.stem for unit in UNITS if unit.suffix == ".timer"}
    assert timers == {unit.stem for unit in SERVICES} - {HELPER}
    assert {unit.name for unit in UNITS if unit.suffix == ".socket"} == {"hpcimg.socket"}
    for unit in SERVICES:
        if unit.stem == HELPER:
            continue
        [command] = re.findall(
            r"^ExecStart=/usr/lib/hpcimg/bin/hpcimg (\w+)", unit.read_text(), re.M
        )
        assert unit.stem == f"hpcimg-{command}"


@needs("systemd-tmpfiles")
def test_tmpfiles(tmp_path: Path) -> None:
    path = ETC / "tmpfiles.d" / "hpcimg.conf"
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("run/hpcimg", "var/cache/hpcimg"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o755


@needs("logrotate")
def test_logrotate(tmp_path: Path) -> None:
    text = (ETC / "logrotate.d" / "hpcimg").read_text()
    log = tmp_path / "hpcimg.log"
    log.write_text("a line\n")
    (tmp_path / "conf").write_text(text.replace("/var/log/hpcimg.log", str(log)))
    (tmp_path / "conf").chmod(0o644)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        ["logrotate", "--force", "--state", tmp_path / "state", tmp_path / "conf"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "hpcimg.log.1").read_text() == "a line\n"
    assert log.read_text() == ""
