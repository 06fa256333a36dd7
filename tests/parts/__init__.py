"""Building blocks of tests and demo: a Slurm cluster, an OCI registry, images."""
