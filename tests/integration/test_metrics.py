"""hpcimg metrics, and the alerts and the dashboard that are made of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.checks import refused, staged
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

PROMETHEUS, GRAFANA = ROOT / "etc/prometheus/hpcimg.rules.yml", ROOT / "etc/grafana/hpcimg.json"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="not installed here: promtool, of prometheus"
)


@pytest.fixture
def busy(node: Node, web: WebServer, url: str, sif: bytes) -> Node:
    """A node where everything that is counted has happened."""
    staged(node, 1, f"container:{url}", sif)
    staged(node, 2, f"container:{url}", sif)
    refused(node, 3, f"container:{url}.no", "NotFound")
    for job in (1, 2):
        node.epilog(job)
    assert node.hpcimg("gc").returncode == 0
    assert node.hpcimg("verify").returncode == 0
    assert node.hpcimg("rm", url).returncode == 0
    return node


def values(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_what_is_counted(busy: Node, sif: bytes) -> None:
    found = values(busy.hpcimg("metrics").stdout)
    size = len(sif)
    assert {
        'hpcimg_stages_total{result="hit"}': 1,
        'hpcimg_stages_total{result="stale"}': 0,
        'hpcimg_stage_failures_total{class="user",error="NotFound"}': 1,
        'hpcimg_fetched_bytes_total{scheme="http"}': size,
        'hpcimg_fetched_via_bytes_total{via="origin"}': size,
        'hpcimg_fetched_via_bytes_total{via="site"}': 0,
        'hpcimg_site_failures_total{reason="failed"}': 0,
        "hpcimg_served_bytes_total": 2 * size,
        'hpcimg_evictions_total{reason="rm"}': 1,
        "hpcimg_evicted_bytes_total": size,
        "hpcimg_jobs": 0,
        'hpcimg_check_problem{check="cache"}': 0,
        'hpcimg_stage_duration_seconds_bucket{result="hit",le="+Inf"}': 1,
        'hpcimg_stage_duration_seconds_count{result="fetched"}': 1,
        'hpcimg_cache_bytes{kind="image"}': 0,
    }.items() <= found.items()
    assert found['hpcimg_stage_duration_seconds_sum{result="hit"}'] < 1
    below = [v for k, v in found.items() if k.startswith("hpcimg_stage_duration_seconds_bucket"
             '{result="fetched"')]  # fmt: skip
    assert below == sorted(below)
    [family] = [f for f in busy.hpcimg_json("metrics")["metrics"] if f["name"] == "hpcimg_jobs"]
    assert family["samples"] == [{"labels": {}, "value": 0, "suffix": ""}]


@needs_promtool
@pytest.mark.parametrize("state", ["new", "busy"])
def test_the_linter_has_nothing_to_say(request: pytest.FixtureRequest, state: str) -> None:
    node: Node = request.getfixturevalue("node" if state == "new" else "busy")
    text = node.hpcimg("metrics").stdout
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_textfile_is_replaced_in_one_step(busy: Node, tmp_path: Path) -> None:
    path = tmp_path / "collector" / "hpcimg.prom"
    done = busy.hpcimg("metrics", "--textfile", str(path))
    assert done.returncode == 30
    assert f"{path} cannot be written: No such file or directory" in done.stderr
    path.parent.mkdir()
    path.write_text("old")
    before = path.stat().st_ino
    done = busy.hpcimg("metrics", "--textfile", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == [path.name]
    assert "hpcimg_jobs 0\n" in path.read_text()
    assert busy.hpcimg("metrics", "--textfile", f"{path}.txt").returncode == 2


def test_a_node_in_trouble_still_tells_of_itself(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    node.cache.chmod(0o777)
    assert values(node.hpcimg("metrics").stdout)['hpcimg_check_problem{check="directories"}'] == 1


@needs_promtool
def test_the_alerts_are_right_and_come_when_they_should() -> None:
    for argv in (
        ["check", "rules", str(PROMETHEUS)],
        ["test", "rules", str(ROOT / "tests/integration/hpcimg.rules.test.yml")],
    ):
        done = subprocess.run(["promtool", *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def expressions() -> list[str]:
    """Return all Prometheus expressions of the alerts and the dashboard."""
    found = re.findall(r"^ +expr: (.*(?:\n {10,}.*)*)", PROMETHEUS.read_text(), re.MULTILINE)
    panels = json.loads(GRAFANA.read_text())["panels"]
    return found + [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_alert_is_tested() -> None:
    names = set(re.findall(r"alert: (\w+)", PROMETHEUS.read_text()))
    tested = re.findall(r"alertname: (\w+)", (ROOT / "tests/integration/hpcimg.rules.test.yml").read_text())  # fmt: skip # noqa: E501
    assert names == set(tested)


def test_all_that_alerts_and_dashboard_ask_for_is_exported(busy: Node) -> None:
    exported: dict[str, set[str]] = {}
    for sample in values(busy.hpcimg("metrics").stdout):
        name, _, labels = sample.partition("{")
        exported.setdefault(name, set()).update(re.findall(r'(\w+)=("[^"]*")', labels))
    asked = expressions()
    assert len(asked) > 20
    recorded = set(re.findall(r"record: (\S+)", PROMETHEUS.read_text()))
    for expression in asked:
        for name, _, matchers in re.findall(r"\b(hpcimg[_:][\w:]+)({([^}]*)})?", expression):
            assert name in exported or name in recorded, expression
            for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
                known = {v.strip('"') for n, v in exported.get(name, ()) if n == label}
                if label == "instance" or name in recorded or label == "class":
                    continue
                assert known, (expression, label)
                if operator != "=~":
                    assert value in known, (expression, label, value)
    used = {name for expression in asked for name in re.findall(r"\bhpcimg_\w+", expression)}
    unused = {n for n in exported if not n.endswith(("_sum", "_count")) and n not in used}
    assert unused == set()
