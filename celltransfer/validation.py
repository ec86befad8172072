"""The papers' experiments under the name that users know; see `celltransfer.experiments`."""

from celltransfer.experiments.suites import Claim, Outcome, Suite, run, suites

__all__ = ["Claim", "Outcome", "Suite", "run", "suites"]
