"""hpcimg doctor: problems of this node, and what to do about them."""

from __future__ import annotations

import argparse
import importlib
import time

from hpcimg import health, programs, status
from hpcimg.cache import history, inflight, trash
from hpcimg.cache.paths import Layout
from hpcimg.cli import nagios, output
from hpcimg.config.keys import Config
from hpcimg.convert import squashfs
from hpcimg.errors import HpcimgError, printable
from hpcimg.health import NOTE, OK, PROBLEM, Finding
from hpcimg.site import reach
from hpcimg.slurm import health as slurm_health
from hpcimg.slurm import query
from hpcimg.tier import tidy
from hpcimg.units import format_duration

HELP = """check this node for problems, and say what to do about them

The exit code is 1 if there is a problem. A note needs no action.
Run it as root. With --node it prints only problems, uses neither the
network nor Slurm, and takes less than a second: for health checks that run
often, such as LBNL NHC's check_cmd_status or Slurm's HealthCheckProgram.
--nagios prints one line for Nagios and compatible systems; exit codes 0, 1, 2, 3."""

_RECENT_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--node", action="store_true", help="check quickly, and print only problems"
    )
    parser.add_argument(
        "--nagios", action="store_true", help="print one line in the format of a Nagios plugin"
    )


def run(args: argparse.Namespace) -> int:
    conf, findings = health.node()
    if conf and not args.node:
        findings += _beyond_node(conf)
    bad = [finding for finding in findings if finding.result == PROBLEM]
    if args.nagios:
        line, code = nagios.report(findings, status.gather(conf) if conf else None)
        print(line)
        return code
    if args.json:
        output.print_json({"checks": [f._asdict() for f in findings], "problems": len(bad)})
    else:
        columns = output.width()
        for finding in bad if args.node else findings:
            print(_line(finding, columns))
    return 1 if bad else 0


def _beyond_node(conf: Config) -> list[Finding]:
    """Run the checks that take longer, or use the network or Slurm."""
    query.look_in(conf.slurm_bin)
    layout = Layout(conf.cache_path, conf.state_path)
    found = [_imported(), *_tools(), _leftovers(layout), _failures(layout)]
    if conf.site_path:
        found.append(_site(conf))
    found += [slurm_health.leases(layout), *slurm_health.slurm(conf), *slurm_health.helper(conf)]
    return [*found, *reach.check(conf)]


def _line(finding: Finding, columns: int) -> str:
    text = printable(f"{finding.result:7} {finding.check}: {finding.sentence}")
    text = "\n".join(output.wrapped(text, columns=columns, indent=" " * 8))
    style = {OK: "green", NOTE: "yellow", PROBLEM: "red"}[finding.result]
    return text.replace(finding.result, output.painted(finding.result, style), 1)


def _site(conf: Config) -> Finding:
    if why := tidy.check(conf):
        do = "Nodes fetch for themselves until that is mended: see howto-site-tier.md."
        return Finding("site", PROBLEM, "the site tier cannot be used from here", why, do)
    return Finding("site", OK, f"the site tier {conf.site_path} can be used")


def _imported() -> Finding:
    """Import the modules that fetch: an installed package may still be broken."""
    for name in health.PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            return Finding("imports", PROBLEM, f"{name} cannot be imported", why, "Reinstall it.")
    return Finding("imports", OK, "the modules that fetch can be imported")


def _tools() -> list[Finding]:
    """Look for the tools that convert images in layers; a site without such images needs none."""
    found = [_mksquashfs()]
    for names in (("zstd",), programs.RUNTIMES):
        path = programs.find(*names)
        what = path or f"there is no {' or '.join(names)}"
        found.append(Finding("tools", OK if path else NOTE, what))
    return found


def _mksquashfs() -> Finding:
    try:
        found = squashfs.find_mksquashfs()
    except HpcimgError as error:
        return Finding("tools", NOTE, error.what, error.why)
    if found.reads_tar:
        return Finding("tools", OK, found.path)
    what = f"{found.path} is {found.version[0]}.{found.version[1]}, which cannot read archives"
    why = "images in layers are unpacked on the cache's disk for conversion, which takes longer"
    return Finding("tools", NOTE, what, why)


def _leftovers(layout: Layout) -> Finding:
    stale, waiting = inflight.stale(layout), trash.count(layout)
    if stale:
        what = f"{stale} downloads were interrupted"
        return Finding("leftovers", NOTE, what, "the next job with an image removes the leftovers")
    if waiting:
        what = f"{waiting} files or directories in {layout.trash} are waiting to be removed"
        return Finding(
            "leftovers", NOTE, what, "the next job with an image, or `hpcimg gc`, continues"
        )
    return Finding("leftovers", OK, "no download was interrupted")


def _failures(layout: Layout) -> Finding:
    now = time.time()
    try:
        recent = [
            event
            for event in history.recent(layout)
            if event.get("class") in ("node", "bug") and now - event["time"] < _RECENT_S
        ]
    except OSError as error:
        return Finding("failures", NOTE, "the events cannot be read", error.strerror or "")
    if not recent:
        return Finding("failures", OK, "no job failed because of this node within the last hour")
    last = recent[-1]
    ago = format_duration(now - last["time"])
    what = f"{len(recent)} jobs failed because of this node within an hour, the last {ago} ago"
    return Finding("failures", NOTE, what, str(last.get("message", "")))
