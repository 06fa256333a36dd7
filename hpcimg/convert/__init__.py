"""Converting the layers of an OCI or Docker image into one SIF or squashfs file.

`hpcimg.convert.image` merges the layers into one tar stream, which mksquashfs reads; nothing is
unpacked on disk, except for an old mksquashfs. Everything but `pick_format` runs unprivileged.
docs/converted-images.md describes the content of the file.
"""

from __future__ import annotations

from hpcimg import programs


def pick_format(wanted: str) -> str:
    """Return the format, "sif" or "squashfs", that `[stage] format` selects on this node."""
    if wanted != "auto":
        return wanted
    return "sif" if programs.find(*programs.RUNTIMES) else "squashfs"
