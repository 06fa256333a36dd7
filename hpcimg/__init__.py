"""hpcimg: container images on the node before the Slurm job starts.

Importing this package loads nothing else: on a cache hit every module counts.
"""

__version__ = "0.1.0"
