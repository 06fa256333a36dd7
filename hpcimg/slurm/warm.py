"""The short way through Prolog and Epilog, before anything heavy is loaded.

A job without an image, and one whose images are all warm, are done here. All
else is left to `hpcimg.slurm.prolog` and `hpcimg.slurm.epilog`, by way of
`hpcimg.slurm.watch`. A test names the modules that may be loaded here.
"""

import os

from hpcimg.config import files as conffiles
from hpcimg.slurm import comment

LONG_WAY = 10  # exit code: the hook goes on with the full program
# Of hpcimg.slurm.pyxis, which most jobs do not need.
_PYXIS_OPTION = "SPANK__SLURM_SPANK_OPTION_pyxis_container_image"
_PYXIS_NAME = "PYXIS_CONTAINER_IMAGE"
_QUICK_S = 1.0  # what takes longer, such as looks at a slow file system, is to have a deadline


def main(hook: str) -> int:
    """Run the short way of a hook, "prolog" or "epilog"; return 0 or LONG_WAY.

    Whatever goes wrong here is left to the long way, which knows how to say it.
    """
    try:
        return {"prolog": prolog, "epilog": epilog}[hook](dict(os.environ))
    except Exception:
        return LONG_WAY


def prolog(environ: dict[str, str]) -> int:
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

    # Most jobs never come this far.
    import time

    from hpcimg.cache import events, hot
    from hpcimg.cache.paths import Layout
    from hpcimg.slurm import jobfiles

    started = time.time()
    until = time.monotonic() + _QUICK_S
    files = conffiles.read_files(conffiles.main_file())
    for_pyxis: list[jobfiles.Image] = []
    if option or any(name == _PYXIS_NAME for name, _ in wanted.images):
        from hpcimg.slurm import pyxis

        texts = pyxis.take_out(wanted.images, option)
        if conffiles.raw_value(files, "slurm", "pyxis").lower() in conffiles.YES:
            for_pyxis = [jobfiles.Image("", text, format=pyxis.FORMAT) for text in texts]
    images = [jobfiles.Image(name, text) for name, text in wanted.images] + for_pyxis
    if not images:
        return 0
    layout = Layout(*conffiles.directories(files))
    fingerprint = conffiles.fingerprint(files)
    jobfiles.prepare(layout, job)
    sizes = {}
    for image in images:
        if time.monotonic() > until:
            return LONG_WAY
        text = hot.name_of(image.text, image.format)
        hit = hot.lookup(layout, text, job=job, uid=uid, fingerprint=fingerprint)
        if hit is None:
            return LONG_WAY
        sizes[hit.key] = hit.size_bytes
        image.uri, image.key, image.path, image.source = hit.uri, hit.key, hit.path, "hit"
    jobfiles.write_ready(layout, job, uid, images, started=started, links=wanted.links)
    took_s = round(time.time() - started, 4)
    for image in images:
        size = sizes[image.key]
        events.record(layout.events, "hit", job=job, key=image.key, bytes=size, took_s=took_s)
    return 0


def epilog(environ: dict[str, str]) -> int:
    """Drop the job's leases; return LONG_WAY when it had images, so that room may be made."""
    from hpcimg.cache.paths import Layout

    job = environ["SLURM_JOB_ID"]
    layout = Layout(*conffiles.directories(conffiles.read_files(conffiles.main_file())))
    if not job.isdigit() or not os.path.isdir(layout.job(job)):
        return 0

    from hpcimg.cache import lease
    from hpcimg.slurm import jobfiles

    lease.drop(layout, job)
    jobfiles.remove(layout, job)
    return LONG_WAY
