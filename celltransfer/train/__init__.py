"""The one training loop, and how a fit ended."""

from typing import Any

from celltransfer.train.outcome import FitResult, Status, Verdict

__all__ = ["FitResult", "Status", "Trainer", "Verdict"]


def __getattr__(name: str) -> Any:
    """Import the loop, and torch with it, on first use only."""
    if name == "Trainer":
        from celltransfer.train.loop import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
