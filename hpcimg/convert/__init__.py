"""Turning the layers of an OCI or Docker image into one SIF or squashfs file.

`hpcimg.convert.image` merges the layers into one tar stream, which mksquashfs reads;
nothing is unpacked on disk, but for an old mksquashfs. All of it runs without root's
rights but `pick_format`. What the file holds is described in docs/converted-images.md.
"""

from __future__ import annotations

from hpcimg import programs

RUNTIMES = ("apptainer", "singularity")


def pick_format(wanted: str) -> str:
    """Return the format, "sif" or "squashfs", that `[stage] format` stands for on this node."""
    if wanted != "auto":
        return wanted
    return "sif" if programs.find(*RUNTIMES) else "squashfs"
