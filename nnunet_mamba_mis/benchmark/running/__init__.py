"""The jobs of a comparison: checked, run here or on Slurm, and followed."""
