"""Methods side by side under the name that users know; see `celltransfer.experiments.grid`."""

from celltransfer.experiments.grid import ARMS, Arm, Job, arm, jobs, load, own_arm, run, slice_jobs, slices

__all__ = ["ARMS", "Arm", "Job", "arm", "jobs", "load", "own_arm", "run", "slice_jobs", "slices"]
