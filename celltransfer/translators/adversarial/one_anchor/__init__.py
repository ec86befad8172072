"""Finds a sparse map from unpaired cells and very few anchors, in a few features and without training."""

from celltransfer.translators.adversarial.one_anchor.search import Found, search

__all__ = ["Found", "search"]
