"""Validation suites: the experiments of the papers, run by name.

`suites` lists them, `run` runs one and returns an `Outcome`; the same as ``celltransfer validate``.
"""

from celltransfer.validation.base import Claim, Outcome, Suite, run, suites

__all__ = ["Claim", "Outcome", "Suite", "run", "suites"]
