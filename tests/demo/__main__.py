"""Choose what this host can run, run the demo, and exit with 0 if everything was as expected."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.demo.hooks import HooksPlace
from tests.demo.slurm import SlurmPlace
from tests.demo.story import Story
from tests.parts.site import Site


def main() -> int:
    """Run the demo."""
    began = time.monotonic()
    os.umask(0o022)
    missing = Site.missing()
    with tempfile.TemporaryDirectory(prefix="hpcimg-demo-") as directory:
        Path(directory).chmod(0o755)
        if missing:
            print(f"No real Slurm here ({missing}).")
            print("The hooks are called as slurmd would call them instead.\n")
        place = HooksPlace(Path(directory)) if missing else SlurmPlace()
        story = Story(place)
        with place:
            story.tell()
    print(f"\nIt took {time.monotonic() - began:.0f} s. Nothing of it is left on this host.")
    for wrong in story.wrong:
        print(f"WRONG: {wrong}")
    print("All was as it should be." if not story.wrong else "")
    return 1 if story.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
