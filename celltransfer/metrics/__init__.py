"""Scores with truth, the protocol that keeps them honest, and the controls that say what they are worth."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public names and where they live, imported on first use.
_MODULES = {
    "scores": (
        "classifier_auc",
        "correlation_per_cell",
        "correlation_per_feature",
        "energy_distance",
        "foscttm",
        "foscttm_directions",
        "foscttm_per_cell",
        "foscttm_within",
        "knn_accuracy",
        "knn_accuracy_cmae",
        "knn_accuracy_cmae_per_cell",
        "knn_accuracy_per_cell",
        "label_transfer_accuracy",
        "label_transfer_per_cell",
        "mse",
        "mse_per_cell",
        "reference_share",
    ),
    "bootstrap": ("Interval", "better", "difference", "interval", "not_below"),
    "space": ("ScoringSpace",),
    "protocol": ("Scores", "Task", "control_table", "leak_test", "make_task", "score", "score_points"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"celltransfer.metrics.{_HOME[name]}"), name)
    raise AttributeError(f"module 'celltransfer.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
