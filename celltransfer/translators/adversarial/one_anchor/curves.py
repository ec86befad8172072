"""Monotone curves, one for each output: what a sparse linear map needs where outputs bend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

# Knots of a curve, at as many quantiles; how many of them give the slope beyond the ends.
KNOTS, END = 100, 5
# Two samples' laws differ where the test of Kolmogorov and Smirnov says so at this level, over all outputs.
LEVEL = 1e-3


@dataclass(frozen=True, eq=False)
class Curves:
    """Piecewise linear and increasing; straight beyond the ends.

    Attributes
    ----------
    knots, values
        Where, and what there, shapes (D, knots).
    """

    knots: np.ndarray
    values: np.ndarray

    @classmethod
    def between(cls, cells: np.ndarray, wanted: np.ndarray) -> Curves:
        """The curves that give every column of `cells` (n, D) the law of that of `wanted` (m, D)."""
        levels = (np.arange(KNOTS) + 0.5) / KNOTS
        return cls(np.quantile(cells, levels, axis=0).T, np.quantile(wanted, levels, axis=0).T)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (n, D) along the curves."""
        return _along(points, self.knots, self.values)

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """Where points (n, D) come from."""
        return _along(points, self.values, self.knots)


def same_laws(cells: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether columns of `cells` and `wanted` may have the same laws, one by one."""
    pairs = zip(cells.T, wanted.T, strict=True)
    return min(ks_2samp(own, other).pvalue for own, other in pairs) > LEVEL / cells.shape[1]


def _along(points: np.ndarray, knots: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.empty(points.shape)
    for j, (at, value) in enumerate(zip(knots, values, strict=True)):
        inside = np.interp(points[:, j], at, value)
        for end, inner, beyond in ((0, END, points[:, j] < at[0]), (-1, -1 - END, points[:, j] > at[-1])):
            run = at[end] - at[inner]
            slope = (value[end] - value[inner]) / run if run else 0.0
            inside = np.where(beyond, value[end] + slope * (points[:, j] - at[end]), inside)
        out[:, j] = inside
    return out
