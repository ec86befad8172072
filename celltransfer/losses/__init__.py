"""Losses as pure functions: adversarial matching, distances of samples, and penalties of Jacobians."""

from celltransfer.losses import adversarial, discrepancy, identifiability, jacobian

__all__ = ["adversarial", "discrepancy", "identifiability", "jacobian"]
