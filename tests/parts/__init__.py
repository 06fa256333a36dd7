"""Real parts that tests and the demo stand on: a Slurm cluster, an OCI registry, images."""
