"""Translate single cells between modalities from unpaired cells and a handful of anchors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from celltransfer._version import __version__ as __version__
from celltransfer.settings import settings

# Public names and where they live. Imported on first use, so that `import celltransfer` stays fast.
_ATTRIBUTES = {
    "alignment": "celltransfer.verdict.translated",
    "fit": "celltransfer.api",
    "load": "celltransfer.model.io",
    "report": "celltransfer.reporting",
    "Report": "celltransfer.reporting",
    "TransferModel": "celltransfer.model.model",
}
_MODULES = (
    "anchors",
    "datasets",
    "errors",
    "losses",
    "metrics",
    "pl",
    "pp",
    "tl",
    "train",
    "translators",
    "validation",
)

__all__ = [
    "Report",
    "TransferModel",
    "alignment",
    "anchors",
    "datasets",
    "errors",
    "fit",
    "load",
    "losses",
    "metrics",
    "pl",
    "pp",
    "report",
    "settings",
    "tl",
    "train",
    "translators",
    "validation",
]

if TYPE_CHECKING:
    from celltransfer import anchors, datasets, errors, losses, metrics, pl, pp, tl, train, translators, validation
    from celltransfer.api import fit
    from celltransfer.model.io import load
    from celltransfer.model.model import TransferModel
    from celltransfer.reporting import Report, report
    from celltransfer.verdict.translated import alignment


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(import_module(_ATTRIBUTES[name]), name)
    if name in _MODULES:
        return import_module(f"celltransfer.{name}")
    raise AttributeError(f"module 'celltransfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
