"""A cloud of cells in the coordinates that the search works in: standardised, whitened and as normal scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

# Eigenvalues of the correlation matrix below this share of the largest are no direction of the cells.
RANK_TOLERANCE = 1e-6
# Normal scores are clipped here: the tails are few cells.
MOST_SCORE = 3.0


@dataclass(frozen=True, eq=False)
class Cloud:
    """Cells of one side and its anchors, both in features of mean 0 and standard deviation 1.

    Attributes
    ----------
    cells, anchors
        Shapes (n, p) and (k, p).
    mean, sd
        Of the features as they came, shape (p,).
    """

    cells: np.ndarray
    anchors: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, cells: np.ndarray, anchors: np.ndarray) -> Cloud:
        """Standardise cells (n, p) and, by the same means and deviations, anchors (k, p)."""
        cells = np.asarray(cells, dtype=np.float64)
        mean, sd = cells.mean(axis=0), np.maximum(cells.std(axis=0), 1e-12)
        return cls((cells - mean) / sd, (np.asarray(anchors, dtype=np.float64) - mean) / sd, mean, sd)

    @cached_property
    def correlation(self) -> np.ndarray:
        """Correlation matrix, shape (p, p)."""
        return self.cells.T @ self.cells / len(self.cells)

    @cached_property
    def _roots(self) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(self.correlation)
        kept = values > RANK_TOLERANCE * values[-1]
        roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
        if kept.all():  # the symmetric root changes cells least, so that features that are independent stay themselves
            return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
        return vectors * roots, (vectors / roots).T

    @property
    def factor(self) -> np.ndarray:
        """Takes white cells to standardised ones, shape (p, rank)."""
        return self._roots[0]

    @property
    def whitener(self) -> np.ndarray:
        """Takes standardised cells to white ones, shape (rank, p)."""
        return self._roots[1]

    @cached_property
    def white(self) -> np.ndarray:
        """White cells, shape (n, rank)."""
        return self.cells @ self.whitener.T

    @cached_property
    def white_anchors(self) -> np.ndarray:
        """White anchors, shape (k, rank)."""
        return self.anchors @ self.whitener.T

    @cached_property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Normal scores of the cells' and of the anchors' features: what is left of them after any monotone change."""
        return normal_scores(self.cells, self.cells), normal_scores(self.cells, self.anchors)


def normal_scores(cells: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Normal scores of points (k, p) among cells (n, p), column by column, clipped at `MOST_SCORE`."""
    n = len(cells)
    if at is cells:
        ranks = (rankdata(cells, axis=0) - 0.5) / n
    else:
        columns = np.sort(cells, axis=0).T
        sides = [
            [np.searchsorted(c, v, side) for c, v in zip(columns, at.T, strict=True)] for side in ("left", "right")
        ]
        ranks = np.mean(sides, axis=0).T / n
    return np.clip(ndtri(np.clip(ranks, 0.5 / n, 1 - 0.5 / n)), -MOST_SCORE, MOST_SCORE)
