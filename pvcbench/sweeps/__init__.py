"""Sweeps: many runs as a manifest, on one machine or on SLURM."""
