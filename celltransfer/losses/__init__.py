"""Losses as pure functions: adversarial matching, distances of samples, energy models, and penalties of Jacobians."""

from celltransfer.losses import adversarial, discrepancy, energy, identifiability, jacobian, transport

__all__ = ["adversarial", "discrepancy", "energy", "identifiability", "jacobian", "transport"]
