"""hpcimg: container images on the node before the Slurm job starts.

Importing this package loads nothing else: the way to a warm hit counts every
module.
"""

__version__ = "0.1.0"
