"""Check the jobs of a comparison, run them on this machine or on Slurm, and track their progress."""
