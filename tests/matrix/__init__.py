"""Run the Slurm tests in other Debian releases: `make test-matrix`."""
