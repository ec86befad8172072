"""Least squares with the support fixed: what covariances and anchors say of the entries that a map keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from celltransfer.translators.adversarial.one_anchor.cloud import Cloud

# Steps of Gauss and Newton, and how the damping shrinks and grows.
STEPS, SHRINK, GROW = 8, 0.3, 8.0


class Refitted(NamedTuple):
    """Maps of standardised features (batch, D, d), and their squared errors of covariances and anchors, (batch,)."""

    weights: np.ndarray
    covariances: np.ndarray
    anchors: np.ndarray


def refit(weights: np.ndarray, source: Cloud, target: Cloud, least: float, noise: float = 0.0) -> Refitted:
    """Entries larger than `least` anew, so that W C W' and W a come as near to the target's as they can.

    Parameters
    ----------
    weights
        Maps to start from, shape (batch, D, d).
    source, target
        The clouds.
    least
        Entries up to here become zero and stay so.
    noise
        Standard deviation of the anchors' coordinates, beside their sampling error.
    """
    problem = _Problem(source, target, noise)
    free = np.abs(weights) > least
    weights, damping = weights * free, np.full(len(weights), 1e-2)
    best = problem.errors(weights)
    for _ in range(STEPS):
        moved = weights - problem.step(weights, free, damping)
        errors = problem.errors(moved)
        better = errors.sum(axis=1) < best.sum(axis=1)
        weights, best = np.where(better[:, None, None], moved, weights), np.where(better[:, None], errors, best)
        damping = np.where(better, damping * SHRINK, damping * GROW)
    return Refitted(weights, best[:, 0], best[:, 1])


class _Problem:
    """Residuals in sampling errors, and their derivatives."""

    def __init__(self, source: Cloud, target: Cloud, noise: float) -> None:
        n = min(len(source.cells), len(target.cells))
        self.source, self.target = source.correlation, target.correlation
        self.a, self.b = source.anchors, target.anchors
        self.d, self.out = len(self.source), len(self.target)
        self.rows, self.columns = np.triu_indices(self.out)
        self.scale = np.sqrt(n / (2 * (1 + self.target[self.rows, self.columns] ** 2)))
        self.anchor_scale = 1 / np.sqrt((2 + self.b**2 / 2) / n + 2 * noise**2)
        slope = np.zeros((len(self.a), self.out, self.out, self.d))
        slope[:, np.arange(self.out), np.arange(self.out)] = self.a[:, None]
        self.anchor_slope = (slope * self.anchor_scale[:, :, None, None]).reshape(-1, self.out * self.d)

    def residuals(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        made = weights @ self.source @ weights.transpose(0, 2, 1)
        miss = (np.einsum("kd,bod->bko", self.a, weights) - self.b) * self.anchor_scale
        return (made - self.target)[:, self.rows, self.columns] * self.scale, miss.reshape(len(weights), -1)

    def errors(self, weights: np.ndarray) -> np.ndarray:
        """Squared errors of covariances and anchors, shape (batch, 2)."""
        return np.stack([(part**2).sum(axis=1) for part in self.residuals(weights)], axis=1)

    def step(self, weights: np.ndarray, free: np.ndarray, damping: np.ndarray) -> np.ndarray:
        """Damped step to subtract."""
        n, size = len(weights), self.out * self.d
        inner, at = weights @ self.source, np.arange(len(self.rows))
        slope = np.zeros((n, len(self.rows), self.out, self.d))
        slope[:, at, self.rows] += inner[:, self.columns]
        slope[:, at, self.columns] += inner[:, self.rows]
        covariances = (slope * self.scale[:, None, None]).reshape(n, -1, size)
        anchors = np.broadcast_to(self.anchor_slope, (n, *self.anchor_slope.shape))
        whole = np.concatenate([covariances, anchors], axis=1) * free.reshape(n, 1, size)
        residual = np.concatenate(self.residuals(weights), axis=1)[:, :, None]
        squared = whole.transpose(0, 2, 1) @ whole
        diagonal = np.einsum("bii->bi", squared)
        # What is not free has no slope: any weight on the diagonal keeps it where it is.
        extra = damping[:, None] * diagonal + 1e-3 + ~free.reshape(n, size)
        squared[:, np.arange(size), np.arange(size)] += extra
        return np.linalg.solve(squared, whole.transpose(0, 2, 1) @ residual)[:, :, 0].reshape(weights.shape)
