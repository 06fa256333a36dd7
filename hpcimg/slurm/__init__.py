"""What slurmd calls: Prolog and Epilog, and what they know about Slurm."""
