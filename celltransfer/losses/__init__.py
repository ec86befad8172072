"""Losses that several methods share: adversarial matching, distances of samples, and penalties of Jacobians."""

from celltransfer.losses import adversarial, discrepancy, jacobian

__all__ = ["adversarial", "discrepancy", "jacobian"]
