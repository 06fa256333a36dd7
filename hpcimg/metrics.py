"""What this node tells Prometheus: families of samples, and their text.

The text is that of the Prometheus exposition format 0.0.4, without timestamps.
No label grows with users, jobs or images. Counters count since the node's state
was made, which is its boot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hpcimg import __version__, status
from hpcimg.cache import scrub
from hpcimg.cache.paths import Layout
from hpcimg.cache.sums import BUCKETS_S, FAILED, RESULTS, Sums
from hpcimg.config.keys import Config
from hpcimg.fetch.contract import VIA
from hpcimg.health import PROBLEM, Finding

PHASES = ("asking", "fetching", "converting", "checking", "waiting")
SITE_REASONS = ("failed", "busy", "damaged")  # of events that begin with site_
LIMITS = ("max_size", "high", "low", "min_free")


class Sample(NamedTuple):
    """One value, under its family's name and a suffix."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Family(NamedTuple):
    """All samples of one name; `kind` is gauge, counter or histogram."""

    name: str
    kind: str
    about: str
    samples: tuple[Sample, ...]


def gather(config: Config, findings: Iterable[Finding], *, waiting: int) -> list[Family]:
    """Return all that there is to tell of this node.

    `findings` are those of `health.node`, `waiting` is the number of jobs that
    wait for another's download.
    """
    seen = status.look(config)
    layout = Layout(config.cache_path, config.state_path)
    return [
        _gauge("hpcimg_build_info", "The release.", (Sample({"version": __version__}, 1),)),
        *_of_cache(seen),
        *_of_work(seen, waiting),
        _problems(findings),
        *_lasts(layout, seen.sums),
        *counters(seen.sums),
    ]


def _of_cache(seen: status.Seen) -> list[Family]:
    kinds = {"image": seen.images, "layer": seen.layers}
    found = [
        _gauge(
            "hpcimg_cache_bytes",
            "Bytes of the images and layers in the cache.",
            (Sample({"kind": kind}, held.size_bytes) for kind, held in kinds.items()),
        ),
        _gauge(
            "hpcimg_cache_objects",
            "How many images and layers are in the cache.",
            (Sample({"kind": kind}, held.number) for kind, held in kinds.items()),
        ),
        _gauge(
            "hpcimg_cache_in_use_bytes",
            "Bytes of the images that jobs use.",
            (Sample({}, seen.in_use.size_bytes),),
        ),
        _gauge(
            "hpcimg_cache_held_bytes",
            "Bytes of the images that jobs use or that are pinned: what cannot be evicted.",
            (Sample({}, seen.held.size_bytes),),
        ),
    ]
    if seen.limits is None or seen.free_bytes is None:  # there is no cache yet, or a problem
        return found
    limits = seen.limits._asdict()
    return [
        *found,
        _gauge(
            "hpcimg_cache_limit_bytes",
            "The limits of the cache, and what is to stay free on its disk (min_free).",
            (Sample({"limit": name}, limits[name]) for name in LIMITS),
        ),
        _gauge(
            "hpcimg_cache_free_bytes",
            "Bytes that are free on the cache's disk.",
            (Sample({}, seen.free_bytes),),
        ),
    ]


def _of_work(seen: status.Seen, waiting: int) -> list[Family]:
    phases = [str(work["phase"]) for work in seen.staging]
    others = sorted(set(phases) - set(PHASES))
    return [
        _gauge("hpcimg_jobs", "Jobs that use images now.", (Sample({}, len(seen.jobs)),)),
        _gauge(
            "hpcimg_jobs_waiting",
            "Jobs that are held until another job has fetched their image.",
            (Sample({}, waiting),),
        ),
        _gauge(
            "hpcimg_staging",
            "Images on their way, by what is done.",
            (Sample({"phase": phase}, phases.count(phase)) for phase in (*PHASES, *others)),
        ),
    ]


def _problems(findings: Iterable[Finding]) -> Family:
    found: dict[str, int] = {}
    for finding in findings:
        found[finding.check] = max(found.get(finding.check, 0), int(finding.result == PROBLEM))
    samples = (Sample({"check": check}, value) for check, value in found.items())
    about = "Whether a check of `hpcimg doctor --node` found a problem."
    return _gauge("hpcimg_check_problem", about, samples)


def _lasts(layout: Layout, sums: Sums) -> list[Family]:
    last = scrub.last(layout)
    found = []
    if "gc" in sums.last:
        about = "When `hpcimg gc` ran last, as a Unix time."
        sample = Sample({}, sums.last["gc"])
        found.append(_gauge("hpcimg_last_gc_timestamp_seconds", about, (sample,)))
    if last:
        about = "When `hpcimg verify` looked at all files last, as a Unix time."
        found.append(
            _gauge("hpcimg_last_verify_timestamp_seconds", about, (Sample({}, last.time),))
        )
        about = "Files that `hpcimg verify` found damaged and that are still there."
        found.append(_gauge("hpcimg_damaged_objects", about, (Sample({}, last.left),)))
    return found


def counters(sums: Sums) -> list[Family]:
    """Return what only grows. Each result is there from the start: a rate needs two values."""
    happened = sums.family("events")
    stages = {result: happened.get(result, 0) for result in (*RESULTS, FAILED)}
    failures = sums.family("failures")
    return [
        _counter(
            "hpcimg_stages_total",
            "Images that jobs were handed, or not, by what came of it.",
            (Sample({"result": result}, count) for result, count in stages.items()),
        ),
        _counter(
            "hpcimg_stage_failures_total",
            "Failures, by whose turn it is (user, transient, node, bug) and the error.",
            (
                Sample({"class": label.partition(" ")[0], "error": label.partition(" ")[2]}, count)
                for label, count in sorted(failures.items())
            ),
        ),
        _counter(
            "hpcimg_fetched_bytes_total",
            "Sizes of the images that were fetched, by the scheme of their references.",
            _by(sums, "fetched_bytes", "scheme"),
        ),
        _counter(
            "hpcimg_fetched_via_bytes_total",
            "Sizes of the images that were fetched, by where their bytes came from.",
            (Sample({"via": via}, sums.family("fetched_via").get(via, 0)) for via in VIA),
        ),
        _counter(
            "hpcimg_site_failures_total",
            "Times that the site tier was passed over, and why.",
            (
                Sample({"reason": reason}, happened.get(f"site_{reason}", 0))
                for reason in SITE_REASONS
            ),
        ),
        _counter(
            "hpcimg_served_bytes_total",
            "Sizes of the images that jobs were handed, fetched or from the cache.",
            (Sample({}, sums.total("served_bytes")),),
        ),
        _counter(
            "hpcimg_peers_failed_total",
            "Images that were fetched without the other nodes of the job, because these failed.",
            (Sample({}, happened.get("peers_failed", 0)),),
        ),
        _counter(
            "hpcimg_evictions_total",
            "Images and layers that were removed: above the high watermark (limit), for a job's"
            " image (room), for a user's (share), by hand (rm), or damaged.",
            _by(sums, "evictions", "reason"),
        ),
        _counter(
            "hpcimg_evicted_bytes_total",
            "Bytes of the images and layers that were removed.",
            (Sample({}, sums.total("evicted_bytes")),),
        ),
        _counter(
            "hpcimg_requeues_total",
            "Jobs that were put back into the queue, since their image may be had later.",
            (Sample({}, happened.get("requeue", 0)),),
        ),
        _durations(sums),
    ]


def _durations(sums: Sums) -> Family:
    buckets, timed = sums.family("buckets"), sums.family("timed")
    seconds = sums.family("seconds")
    samples: list[Sample] = []
    for result in (*RESULTS, FAILED):
        below = 0.0
        for bound in BUCKETS_S:
            below += buckets.get(f"{result} {bound}", 0)
            samples.append(Sample({"result": result, "le": f"{bound:g}"}, below, "_bucket"))
        count = timed.get(result, 0)
        samples.append(Sample({"result": result, "le": "+Inf"}, count, "_bucket"))
        samples.append(Sample({"result": result}, seconds.get(result, 0), "_sum"))
        samples.append(Sample({"result": result}, count, "_count"))
    return Family(
        "hpcimg_stage_duration_seconds",
        "histogram",
        "How long jobs were held for an image, by what came of it: hit is from the cache.",
        tuple(samples),
    )


def _by(sums: Sums, family: str, label: str) -> Iterable[Sample]:
    return (Sample({label: name}, value) for name, value in sorted(sums.family(family).items()))


def _gauge(name: str, about: str, samples: Iterable[Sample]) -> Family:
    return Family(name, "gauge", about, tuple(samples))


def _counter(name: str, about: str, samples: Iterable[Sample]) -> Family:
    return Family(name, "counter", about, tuple(samples))


def text(families: Iterable[Family]) -> str:
    """Return the families as Prometheus reads them."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.about}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value, suffix in family.samples:
            inner = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels.items())
            at = f"{{{inner}}}" if inner else ""
            lines.append(f"{family.name}{suffix}{at} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
