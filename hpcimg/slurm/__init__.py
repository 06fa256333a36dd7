"""What slurmd calls: prolog and epilog, and what they know of Slurm."""
