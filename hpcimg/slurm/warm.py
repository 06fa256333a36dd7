"""The fast path through Prolog and Epilog, before anything heavy is loaded.

It handles a job without an image, one whose images are all cached, and one that waits for an image
that another job fetches. Everything else is left to `hpcimg.slurm.prolog` and
`hpcimg.slurm.epilog`, through `hpcimg.slurm.watch`. A test names the modules that may be loaded
here. They import posix, which is built in, where others import os: to load os takes an eighth of
the time of a hit.
"""

import posix
import sys
import time

from hpcimg.config import files as conffiles
from hpcimg.slurm import comment

TYPE_CHECKING = False  # importing typing takes longer than a hit
if TYPE_CHECKING:
    from hpcimg.cache.leader import Leader

LONG_WAY = 10  # exit code: the hook continues with the full program
BROKEN = 11  # the full program was run, and failed
_DRAIN = 43  # as in `hpcimg.slurm.prolog`
# Of hpcimg.slurm.pyxis, which most jobs do not need.
_PYXIS_OPTION = "SPANK__SLURM_SPANK_OPTION_pyxis_container_image"
_PYXIS_NAME = "PYXIS_CONTAINER_IMAGE"
_QUICK_S = 1.0  # slower work, such as checks on a slow file system, needs a deadline
_AGAIN = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.slurm import watch; "
    "sys.exit(watch.main(sys.argv[2], came=float(sys.argv[3])))"
)


def run(hook: str) -> None:
    """Run a hook, "prolog" or "epilog", including the slow path if necessary, and exit.

    The exit codes 0 and the one that drains the node are final, and BROKEN means that the slow path
    failed; after any other, the hook itself takes the slow path.
    """
    # To take the interpreter apart in good order takes longer than a hit.
    posix._exit(_run(hook))


def _run(hook: str) -> int:
    came = time.monotonic()
    leaders: list[Leader] = []
    code = main(hook, leaders)
    if code != LONG_WAY:
        return code
    if any(leader.abandoned for leader in leaders):  # a thread is left, and cannot be ended
        argv = [sys.executable, "-I", "-c", _AGAIN, sys.path[0], hook, repr(came)]
        posix.execv(argv[0], argv)
    from hpcimg.slurm import watch

    leads = next((leader for leader in leaders if leader.leads), None)
    code = watch.main(hook, came=came, leader=leads)
    sys.stderr.flush()
    return code if code in (0, _DRAIN) else BROKEN


def main(hook: str, leaders: "list[Leader] | None" = None) -> int:
    """Run the fast path of a hook, "prolog" or "epilog"; return 0 or LONG_WAY.

    Any error here is left to the slow path, which can report it. What this process leads or waited
    for is added to `leaders`; without that list, it does not wait.
    """
    try:
        environ = _environ()
        return epilog(environ) if hook == "epilog" else prolog(environ, leaders)
    except Exception:
        return LONG_WAY


def prolog(environ: dict[str, str], leaders: "list[Leader] | None" = None) -> int:
    """Return 0 when the job can start, LONG_WAY when there is work to do."""
    wanted = comment.read(*(environ.get(name, "") for name in comment.VARIABLES))
    if wanted.problem or wanted.missed[0]:
        return LONG_WAY
    option = environ.get(_PYXIS_OPTION, "")
    if not wanted.images and not option:
        return 0
    job, uid = environ["SLURM_JOB_ID"], int(environ["SLURM_JOB_UID"])
    if not job.isdigit():
        return LONG_WAY

    # Most jobs end here.
    from hpcimg.cache import events, hot
    from hpcimg.cache.paths import Layout
    from hpcimg.slurm import jobfiles

    started = time.time()
    until = time.monotonic() + _QUICK_S
    files = conffiles.read_files(conffiles.main_file(environ))
    for_pyxis: list[jobfiles.Image] = []
    if option or any(name == _PYXIS_NAME for name, _ in wanted.images):
        from hpcimg.slurm import pyxis

        texts = pyxis.take_out(wanted.images, option)
        if conffiles.raw_value(files, "slurm", "pyxis").lower() in conffiles.YES:
            for_pyxis = [jobfiles.Image("", text, format=pyxis.FORMAT) for text in texts]
    images = [jobfiles.Image(name, text) for name, text in wanted.images] + for_pyxis
    if not images:
        return 0
    agree = (
        conffiles.raw_value(files, "site", "path")
        or conffiles.raw_value(files, "peers", "use") == "yes"
    )
    if agree and _several_nodes(environ):
        return LONG_WAY  # the job's nodes agree on one image
    node = conffiles.node_name(environ)
    layout = Layout(*conffiles.directories(files, node))
    fingerprint = conffiles.fingerprint(files, node)
    jobfiles.prepare(layout, job)
    this = jobfiles.Job(job, uid, images, started=started)
    sizes = {}
    for image in images:
        if time.monotonic() > until:
            return LONG_WAY
        text = hot.name_of(image.text, image.format)
        hit = hot.lookup(layout, text, job=job, uid=uid, fingerprint=fingerprint)
        image.source = "hit"
        if hit is None and leaders is not None:
            from hpcimg.slurm import waiter

            asks = waiter.Asks(files, layout, this)
            hit = waiter.wait(asks, image, text, fingerprint, leaders)
            until = time.monotonic() + _QUICK_S
        if hit is None:
            return LONG_WAY
        sizes[hit.key] = hit.size_bytes
        image.uri, image.key, image.path = hit.uri, hit.key, hit.path
    jobfiles.write_ready(layout, this, links=wanted.links)
    took_s = round(time.time() - started, 4)
    for image in images:
        size = sizes[image.key]
        how = image.source
        events.record(layout.events, how, job=job, key=image.key, bytes=size, took_s=took_s)
    return 0


def _environ() -> dict[str, str]:
    """Return the environment, as in os.environ."""
    coding = sys.getfilesystemencoding()
    return {
        name.decode(coding, "surrogateescape"): value.decode(coding, "surrogateescape")
        for name, value in posix.environ.items()
    }


def _several_nodes(environ: dict[str, str]) -> bool:
    from hpcimg.slurm import nodes  # not needed where nodes share nothing

    return nodes.together(environ) != ""


def epilog(environ: dict[str, str]) -> int:
    """Drop the job's leases; return LONG_WAY if it had images, so that room can be made."""
    from hpcimg.cache.paths import Layout
    from hpcimg.slurm import jobfiles

    job = environ["SLURM_JOB_ID"]
    files = conffiles.read_files(conffiles.main_file(environ))
    layout = Layout(*conffiles.directories(files, conffiles.node_name(environ)))
    if not job.isdigit() or not jobfiles.exists(layout, job):
        return 0
    jobfiles.release(layout, job)
    return LONG_WAY
