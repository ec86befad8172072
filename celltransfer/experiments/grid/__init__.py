"""Methods side by side on co-assayed cells whose pairing is hidden: the same as ``celltransfer benchmark``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celltransfer.experiments.grid.arms import ARMS, Arm, arm, own_arm
    from celltransfer.experiments.grid.plan import Job, jobs, slice_jobs, slices
    from celltransfer.experiments.grid.rows import load
    from celltransfer.experiments.grid.runner import run

__all__ = ["ARMS", "Arm", "Job", "arm", "jobs", "load", "own_arm", "run", "slice_jobs", "slices"]
_HOMES = {
    "arms": ["ARMS", "Arm", "arm", "own_arm"],
    "plan": ["Job", "jobs", "slice_jobs", "slices"],
    "rows": ["load"],
    "runner": ["run"],
}


def __getattr__(name: str) -> Any:
    # Lazily: the module that runs one job is started by name, and must not be loaded before.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
