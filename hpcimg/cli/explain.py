"""hpcimg explain: why a job waited, or failed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from hpcimg.cache import history, inflight, store
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.cli.history import seconds
from hpcimg.config import files as conffiles
from hpcimg.config import load as config
from hpcimg.errors import BadReference, NotFound, printable
from hpcimg.fetch.contract import MIRROR, PEERS, SITE
from hpcimg.slurm import jobfiles, jobs
from hpcimg.units import format_duration, format_size

HELP = """say why a job waited for its images, or why it failed

Reads the job's record while it is on this node, and the node's events after
its end. The exit code is 12 if nothing is known about it."""

_TURNS = {
    "user": "Trying again does not help: the job's user has to fix it.",
    "transient": "This may be temporary: the same job can succeed later.",
    "node": "This node is at fault: `hpcimg doctor` says what to fix.",
    "bug": "This is a bug: the log on this node has the details.",
}
_SLACK_S = 1.0  # between the records of different jobs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's number, SLURM_JOB_ID")


def run(args: argparse.Namespace) -> int:
    job = args.job
    if not job.isdecimal():
        raise BadReference(
            f"{job} is not the number of a job",
            do="Each task of an array has its own: see JobId in `scontrol show job`.",
        )
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    happened = list(history.recent(layout))
    own = [event for event in happened if event.get("job") == job]
    record = jobs.record(layout, job)
    if record is None and not own:
        begin = f"; events go back to {output.when(happened[0]['time'])}" if happened else ""
        raise NotFound(
            f"job {job} used no images on this node",
            why=f"there is no record of it, and no event mentions it{begin}",
            do="Ask on the node where it ran. A job without an image leaves no trace.",
        )
    staging = inflight.under_way(layout)
    state = _state(record, own)
    said = [f"Job {job} on {conffiles.node_name()}: {_STATES[state]}"]
    said += [_sentence(layout, event, happened) for event in own]
    said += _now(layout, job, record, staging) if state == jobfiles.STAGING else []
    if args.json:
        fields = {"job": job, "node": conffiles.node_name(), "state": state, "record": record,
                  "events": own, "explanation": said}  # fmt: skip
        output.print_json(fields)
        return 0
    columns = output.width()
    print(output.painted(printable(said[0]), "bold"))
    for text in said[1:]:
        print("\n".join(output.wrapped(f"  {printable(text)}", columns=columns, indent="    ")))
    return 0


_FROM = {
    MIRROR: " from a mirror", SITE: " from the site tier", PEERS: " from the job's other nodes",
}  # fmt: skip
_STATES = {
    jobfiles.STAGING: "it is held until its images are staged",
    "interrupted": "its Prolog was interrupted before its images were staged, so its tasks fail",
    jobfiles.READY: "it has its images",
    jobfiles.FAILED: "it failed because an image could not be staged",
    "ended": "it has ended",
}


def _state(record: dict[str, Any] | None, own: Sequence[dict[str, Any]]) -> str:
    if record is None:
        failed = [event for event in own if event["event"] == "failed"]
        return jobfiles.FAILED if failed else "ended"
    if record["state"] == jobfiles.STAGING and not jobs.held(record):
        return "interrupted"
    return str(record["state"])


def _sentence(layout: Layout, event: dict[str, Any], happened: Sequence[dict[str, Any]]) -> str:
    """Describe what one event of the job meant for it."""
    at = output.when(event["time"])
    took_s = float(event.get("took_s", 0.0))
    took, size = seconds(took_s), float(event.get("bytes", 0))
    what = _name(layout, event)
    kind = event["event"]
    if kind == "failed":
        turn = _TURNS.get(str(event.get("class")), "")
        name = f" ({event['error']})" if "error" in event else ""
        return f"{at} failed after {took}{name}: {event.get('message', '')} {turn}".rstrip()
    if kind == "waited":
        return f"{at} {what}: {_waited_for(event, happened)}, and this job waited {took} for it"
    if kind == "fetched":
        rate = f"{format_size(size / max(took_s, 0.001))}/s"
        return (
            f"{at} {what}: it was not on this node, and {format_size(size)} were fetched"
            f"{_FROM.get(str(event.get('via')), '')} in {took}, {rate}"
        )
    texts = {
        "hit": f"it was cached, which took {took}",
        "unchanged": f"its server was asked whether it has changed, which took {took}",
        "stale": f"its server did not answer for {took}, so the cached image is used",
        "site_failed": f"the site tier was passed over: {event.get('message', '')}",
        "site_busy": "another node was fetching it for all, and did not get it done in time",
        "site_damaged": "the site tier had it, but damaged",
        "requeue": "the job was requeued",
    }
    text = texts.get(kind, kind)
    return f"{at} {what}: {text}" if what else f"{at} {text}"


def _waited_for(event: dict[str, Any], happened: Sequence[dict[str, Any]]) -> str:
    """Name who fetched the image that the job waited for."""
    began = event["time"] - float(event.get("took_s", 0.0)) - _SLACK_S
    for other in happened:
        same = other["event"] == "fetched" and other.get("key") == event.get("key")
        if same and began <= other["time"] <= event["time"] + _SLACK_S:
            who = f"job {other['job']}" if other.get("job") else "`hpcimg stage`"
            return f"{who} was fetching it"
    return "another job was fetching it"


def _now(
    layout: Layout,
    job: str,
    record: dict[str, Any] | None,
    staging: Sequence[dict[str, Any]],
) -> list[str]:
    """Describe what a held job is waiting for."""
    own = [work for work in staging if work["job"] == job]
    if own:
        return [_progress(work, "its image is being fetched") for work in own]
    waiter = next((w for w in jobs.waiting(layout, staging) if w["job"] == job), None)
    if waiter is None or record is None:
        return []
    since = format_duration(time.time() - waiter["since"])
    theirs = [work for work in staging if work["uri"] in waiter["uris"]]
    if not theirs:
        return [f"held for {since}; nothing is being fetched for it at the moment"]
    return [
        _progress(
            work, f"held for {since}, since job {work['job'] or '-'} is fetching what it needs"
        )
        for work in theirs
    ]


def _progress(work: dict[str, Any], why: str) -> str:
    done, total = work["bytes"], work["total"]
    took = max(time.time() - work["since"], 0.001)
    of = f" of {format_size(total)}" if total else ""
    return (
        f"{work['uri']}: {why}; {work['phase']}, {format_size(done)}{of}"
        f" after {format_duration(took)}, {format_size(done / took)}/s"
    )


def _name(layout: Layout, event: dict[str, Any]) -> str:
    key = str(event.get("key", ""))
    entry = store.load_record(layout, key) if key else None
    return entry.uris[-1] if entry and entry.uris else key
