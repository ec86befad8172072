"""`celltransfer.report`: how good a translation is, on cells whose partner is known, with controls beside it."""

from celltransfer.reporting.build import report
from celltransfer.reporting.result import Report

__all__ = ["Report", "report"]
