"""The scorer's own space: no method chooses how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from celltransfer.errors import FeatureError, InputError
from celltransfer.metrics.scores import blocks

if TYPE_CHECKING:
    from celltransfer.data.pair import Matrix

_EXACT_BELOW = 64
# Of the scale of the space, which is 1 in every direction.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class ScoringSpace:
    """Truncated SVD of normalised training cells, z-scored: ``z = (x - feature_mean) @ directions / scale``.

    Made by `fit`, before any method runs and from training cells only.

    Attributes
    ----------
    directions
        Right singular vectors, shape (p, d).
    feature_mean
        Mean of the training cells, shape (p,).
    scale
        Standard deviation of the training cells along the directions, shape (d,).
    """

    directions: np.ndarray
    feature_mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, normalised: Matrix, n_components: int = 20, seed: int = 0) -> ScoringSpace:
        """Fit on normalised training cells, shape (n, p), dense or sparse.

        The space has `n_components` dimensions, or fewer where the training cells vary along fewer.
        """
        matrix = _finite(normalised)
        directions = _right_singular_vectors(matrix, min(n_components, min(matrix.shape)), seed)
        points = np.asarray(matrix @ directions)
        scale = points.std(axis=0)
        kept = scale > 1e-6 * scale.max()
        if not kept.any():
            raise InputError("All training cells are equal; a scoring space needs cells that differ.")
        return cls(directions[:, kept], np.asarray(matrix.mean(axis=0)).ravel(), scale[kept])

    @property
    def n_components(self) -> int:
        """Number of dimensions, d."""
        return len(self.scale)

    def transform(self, normalised: Matrix, features: np.ndarray | None = None) -> np.ndarray:
        """Place cells, shape (n, p) -> (n, d), centred by the training mean.

        Dense cells are projected block by block. A prediction without certain features leaves them at their training
        mean: it says nothing there.

        Parameters
        ----------
        normalised
            Cells on the normalised scale, shape (n, p) or (n, len(features)).
        features
            Positions, among the p training features, of the columns given; ``None``: all of them.
        """
        given = slice(None) if features is None else np.asarray(features)
        directions = self.directions[given]
        if normalised.ndim != 2 or normalised.shape[1] != len(directions):
            raise FeatureError(
                f"The cells have shape {normalised.shape}: {normalised.shape[-1]} features; the scoring space expects "
                f"{len(directions)}."
            )
        matrix = sp.csr_matrix(normalised) if sp.issparse(normalised) else normalised
        rows = blocks(matrix.shape[0], 8 * matrix.shape[1])
        points = np.concatenate([np.asarray(_finite(matrix[block]) @ directions) for block in rows])
        return (points - self.feature_mean[given] @ directions) / self.scale

    def transform_prediction(self, normalised: Matrix, features: np.ndarray | None = None) -> np.ndarray:
        """Place translated cells, centred by their own mean, never rescaled by their own spread.

        Rescaling by own spread would blow up what cannot be predicted. Parameters as in `transform`.
        """
        return centred(self.transform(normalised, features))


def centred(points: np.ndarray) -> np.ndarray:
    """Points less their mean, shape (n, d); exactly 0 where they differ from it by rounding only.

    A cosine would blow rounding up to a direction, and break the ties of a constant prediction.
    """
    centre = points.mean(axis=0)
    moved = points - centre
    rounding = _ROUNDING * (np.sqrt(points.shape[1]) + np.linalg.norm(centre))
    moved[np.linalg.norm(moved, axis=1) < rounding] = 0.0
    return moved


def _right_singular_vectors(matrix: Matrix, k: int, seed: int) -> np.ndarray:
    """The k leading right singular vectors, shape (p, k)."""
    if min(matrix.shape) <= _EXACT_BELOW:
        full = matrix.toarray() if sp.issparse(matrix) else matrix
        return np.linalg.svd(full, full_matrices=False)[2][:k].T
    start = np.random.default_rng(seed).normal(size=min(matrix.shape))
    _, values, vectors = svds(matrix, k=k, v0=start)
    return vectors[np.argsort(-values)].T


def _finite(values: Matrix) -> Matrix:
    matrix: Matrix = (
        sp.csr_matrix(values, dtype=np.float64) if sp.issparse(values) else np.asarray(values, dtype=np.float64)
    )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"The normalised cells have shape {matrix.shape}; expected (cells, features), none of them 0.")
    if not np.isfinite(np.asarray(matrix.data) if sp.issparse(matrix) else matrix).all():
        raise InputError("The normalised cells hold NaN or infinite values; every value must be finite to be scored.")
    return matrix
