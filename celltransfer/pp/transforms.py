"""The steps of a recipe. Each is fitted on training cells, keeps its state as plain arrays, and can be undone.

A `Normalizer` turns values of all features of a cell into the normalised scale and knows the way back to expected
counts. A `Latent` step turns normalised values into features for the translators and back. All of them work on
CSR as on dense matrices, and none of them densifies what is sparse unless it says so.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds

from celltransfer.errors import ModalityError

if TYPE_CHECKING:
    from typing import Self

    from celltransfer.data.pair import Matrix

logger = logging.getLogger("celltransfer")

# Components this much weaker than the leading one are rounding of float32 data, whatever the number of cells.
WEAKEST_COMPONENT = 1e-6


class Fitted:
    """Something with learned arrays, which are the attributes named in `arrays`."""

    arrays: ClassVar[tuple[str, ...]] = ()

    def get_state(self) -> dict[str, np.ndarray]:
        """Learned arrays by name."""
        return {name: np.asarray(getattr(self, name)) for name in self.arrays}

    def set_state(self, state: dict[str, np.ndarray]) -> Self:
        """Inverse of `get_state`."""
        for name in self.arrays:
            setattr(self, name, state[name])
        return self


class Normalizer(Fitted, ABC):
    """Values of all features -> normalised scale, cell by cell."""

    def fit(self, x: Matrix) -> Self:
        """Learn from training cells, shape (n, p)."""
        return self

    @abstractmethod
    def transform(self, x: Matrix) -> Matrix:
        """Normalise cells, shape (n, p) -> (n, p)."""

    def to_counts(self, y: np.ndarray, kept: np.ndarray) -> np.ndarray | None:
        """Expected counts of the features `kept` in a typical training cell; `y` normalised, shape (n, len(kept))."""
        return None


class Latent(Fitted, ABC):
    """Normalised values -> features for a translator, and back."""

    @abstractmethod
    def fit(self, y: Matrix, depth: np.ndarray) -> Self:
        """Learn from training cells, shape (n, p), and their total counts, shape (n,)."""

    @abstractmethod
    def transform(self, y: Matrix) -> Matrix:
        """Map cells, shape (n, p) -> (n, d)."""

    @abstractmethod
    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Map back, shape (n, d) -> (n, p)."""


class Identity(Normalizer):
    """Values as they are."""

    def transform(self, x: Matrix) -> Matrix:
        """Normalise cells."""
        return x


class LogNormalize(Normalizer):
    r"""Counts per `target_sum`, then log: :math:`y_{ij} = \log(1 + s\, x_{ij} / \sum_k x_{ik})`.

    The size factor of a cell depends on that cell alone. A cell without counts becomes 0.
    """

    arrays = ("median_depth",)

    def __init__(self, target_sum: float = 1e4) -> None:
        self.target_sum = target_sum

    def fit(self, x: Matrix) -> Self:
        """Learn from training cells."""
        self.median_depth = _typical(totals(x))
        return self

    def transform(self, x: Matrix) -> Matrix:
        """Normalise cells."""
        return _log1p(_scale_rows(x, self.target_sum * _reciprocal(totals(x))))

    def to_counts(self, y: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Expected counts of the features `kept`."""
        return _expm1(y, self.target_sum) * np.float32(self.median_depth / self.target_sum)


class TfIdf(Normalizer):
    r"""Term frequency, inverse document frequency, with the latter learned from training cells.

    With :math:`t_{ij} = x_{ij} / \sum_k x_{ik}` and :math:`f_j = n / \sum_i x_{ij}` over n training cells,
    ``flavor="muon"`` is :math:`\log(1 + s\,t_{ij}) \log(1 + f_j)` and ``flavor="signac"`` (its method 1) is
    :math:`\log(1 + s\,t_{ij} f_j)`. Features without counts in the training cells get weight 0.

    References
    ----------
    Stuart et al. 2021, doi 10.1038/s41592-021-01282-5; Bredikhin et al. 2022, doi 10.1186/s13059-021-02577-8.
    """

    arrays = ("idf", "median_depth")

    def __init__(
        self, flavor: Literal["muon", "signac"] = "muon", scale_factor: float = 1e4, binarize: bool = False
    ) -> None:
        self.flavor, self.scale_factor, self.binarize = flavor, scale_factor, binarize

    def fit(self, x: Matrix) -> Self:
        """Learn from training cells."""
        x = self._counts(x)
        idf = x.shape[0] * _reciprocal(totals(x, axis=0))
        self.idf = (np.log1p(idf) if self.flavor == "muon" else idf).astype(np.float32)
        self.median_depth = _typical(totals(x))
        return self

    def transform(self, x: Matrix) -> Matrix:
        """Normalise cells."""
        x = self._counts(x)
        frequency = _scale_rows(x, self.scale_factor * _reciprocal(totals(x)))
        if self.flavor == "muon":
            return _scale_columns(_log1p(frequency), self.idf)
        return _log1p(_scale_columns(frequency, self.idf))

    def to_counts(self, y: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Expected counts of the features `kept`."""
        idf = self.idf[kept]
        weight = _reciprocal(idf).astype(np.float32)
        if self.flavor == "muon":
            frequency = _expm1(y * weight, self.scale_factor)
        else:
            frequency = _expm1(y, self.scale_factor * idf) * weight
        return frequency * np.float32(self.median_depth / self.scale_factor)

    def _counts(self, x: Matrix) -> Matrix:
        return (x > 0).astype(np.float32) if self.binarize else x


class CLR(Normalizer):
    r"""Centred log ratio as in Seurat and muon: :math:`y_{ij} = \log(1 + x_{ij} / g)`.

    :math:`\log g` is the mean of :math:`\log(1 + x)` over the features of the cell (``axis="cell"``), or over the
    training cells of the feature (``axis="feature"``).

    References
    ----------
    Stoeckius et al. 2017, doi 10.1038/nmeth.4380.
    """

    arrays = ("geometric_mean",)

    def __init__(self, axis: Literal["cell", "feature"] = "cell") -> None:
        self.axis = axis

    def fit(self, x: Matrix) -> Self:
        """Keep the mean of every feature, or of the median cell, which only `to_counts` needs."""
        if self.axis == "feature":
            self.geometric_mean = _geometric_mean(x, axis=0)
        else:
            self.geometric_mean = np.median(_geometric_mean(x, axis=1))
        return self

    def transform(self, x: Matrix) -> Matrix:
        """Normalise cells."""
        if self.axis == "feature":
            return _log1p(_scale_columns(x, 1 / self.geometric_mean))
        return _log1p(_scale_rows(x, 1 / _geometric_mean(x, axis=1)))

    def to_counts(self, y: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Expected counts of the features `kept`."""
        mean = self.geometric_mean[kept] if self.axis == "feature" else self.geometric_mean
        return np.expm1(y) * mean.astype(np.float32)


class SVD(Latent):
    r"""Projection on the leading right singular vectors of the training cells: PCA with `center`, LSI without.

    Components whose correlation with log depth exceeds `depth_threshold` in absolute value are left out, always
    keeping one; going back, they are put at their training mean, so that :math:`T(T^{-1}(z)) = z`.
    Deterministic: the start vector comes from `seed`, the largest loading of every component is positive.

    Attributes
    ----------
    components
        Orthonormal rows, shape (d, p).
    offset
        What the training mean and the left-out components contribute, shape (p,).
    dropped
        Ranks of the left-out components, 0 the leading one, shape (number left out,).
    depth_correlation
        Correlation of every component, kept or not, with log depth; 0 for a component that does not vary.
    """

    arrays = ("components", "offset", "scale_", "dropped", "depth_correlation")

    def __init__(
        self,
        n_components: int,
        *,
        center: bool = True,
        scale: bool = False,
        depth_threshold: float | None = None,
        seed: int = 0,
    ) -> None:
        self.n_components, self.center, self.scale = n_components, center, scale
        self.depth_threshold, self.seed = depth_threshold, seed

    def fit(self, y: Matrix, depth: np.ndarray) -> Self:
        """Learn from training cells."""
        mean, deviation = moments(y)
        if self.center and not deviation.any():
            raise ModalityError(
                "All training cells are the same after normalisation: there are no components to find. "
                "Fit on more cells, or pass `n_components=None`."
            )
        self.scale_ = (_divisor(deviation) if self.scale else np.ones_like(deviation)).astype(np.float32)
        scaled = _scale_columns(y, 1 / self.scale_).astype(np.float64)
        mean = mean / self.scale_ if self.center else np.zeros_like(mean)
        vectors = _right_singular_vectors(scaled, mean, self._rank(y.shape), self.seed)
        scores = scaled @ vectors.T - mean @ vectors.T
        self.depth_correlation = _correlation(scores[depth > 0], np.log(depth[depth > 0]))
        self._leave_out(vectors, scores.mean(axis=0), mean)
        return self

    def transform(self, y: Matrix) -> np.ndarray:
        """Scores of the cells, shape (n, d)."""
        projection = (self.components / self.scale_).T
        return np.asarray(y @ projection - self.offset @ self.components.T, dtype=np.float32)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Undo `transform`."""
        return (z @ self.components + self.offset) * self.scale_

    def _rank(self, shape: tuple[int, int]) -> int:
        """As many components as asked for and the data allow."""
        allowed = min(shape[0] - int(self.center), shape[1])
        if self.n_components > allowed:
            logger.info(
                "n_components=%d is more than %s cells and features allow: %d.", self.n_components, shape, allowed
            )
        return min(self.n_components, allowed)

    def _leave_out(self, vectors: np.ndarray, average: np.ndarray, mean: np.ndarray) -> None:
        """Set the learned arrays, leaving out components that only measure depth."""
        strength = np.abs(self.depth_correlation)
        drop = strength > (np.inf if self.depth_threshold is None else self.depth_threshold)
        if drop.all():
            drop[np.argmin(strength)] = False
        self.dropped = np.flatnonzero(drop)
        for rank in self.dropped:
            logger.info("Component %d is left out: correlation %.2f with log depth.", rank + 1, strength[rank])
        self.components = vectors[~drop].astype(np.float32)
        self.offset = (mean + average[drop] @ vectors[drop]).astype(np.float32)


class Standardize(Latent):
    """Unit standard deviation per feature and, with `center` (which densifies), zero mean, as in the training cells."""

    arrays = ("mean", "deviation")

    def __init__(self, center: bool = True) -> None:
        self.center = center

    def fit(self, y: Matrix, depth: np.ndarray) -> Self:
        """Learn from training cells."""
        mean, deviation = moments(y)
        self.mean = (mean if self.center else np.zeros_like(mean)).astype(np.float32)
        self.deviation = _divisor(deviation).astype(np.float32)
        return self

    def transform(self, y: Matrix) -> Matrix:
        """Standardise cells."""
        if self.center and sp.issparse(y):
            y = y.toarray()
        return (y - self.mean) / self.deviation if self.center else _scale_columns(y, 1 / self.deviation)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Undo `transform`."""
        return z * self.deviation + self.mean


def totals(x: Matrix, axis: Literal[0, 1] = 1) -> np.ndarray:
    """Sums over features (1) or cells (0), float64."""
    return np.asarray(x.sum(axis=axis, dtype=np.float64)).ravel()


def moments(y: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, float64; exactly 0 for a column constant up to rounding."""
    n = y.shape[0]
    mean = totals(y, axis=0) / n
    if sp.issparse(y):
        data = y.data.astype(np.float64) - mean[y.indices]
        zeros = n - np.bincount(y.indices, minlength=len(mean))
        variance = (np.bincount(y.indices, data**2, minlength=len(mean)) + zeros * mean**2) / n
    else:
        variance = np.var(y, axis=0, dtype=np.float64)
    deviation = np.sqrt(variance)
    return mean, np.where(deviation > 1e-6 * np.abs(mean), deviation, 0.0)


def _divisor(deviation: np.ndarray) -> np.ndarray:
    """The deviation, 1 for 0: a constant feature is centred and not divided."""
    return np.where(deviation > 0, deviation, 1.0)


def _right_singular_vectors(x: Matrix, mean: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Leading right singular vectors of ``x - mean``, shape (<= k, p), float64, without those of singular value 0."""
    if 2 * k >= min(x.shape):
        full = (x.toarray() if sp.issparse(x) else x) - mean
        _, values, vectors = np.linalg.svd(full, full_matrices=False)
    else:
        start = np.random.default_rng(seed).standard_normal(min(x.shape))
        # the tolerance is squared inside: vectors are right to 1e-8 and better, below float32
        _, values, vectors = svds(_centered(x, mean), k=k, v0=start, solver="arpack", tol=1e-4)
    order = np.argsort(values)[::-1][:k]
    real = order[values[order] > WEAKEST_COMPONENT * values.max()]
    if len(real) < k:
        logger.info("%d of %d components are zero up to rounding and left out.", k - len(real), k)
    vectors = vectors[real]
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)])
    return vectors * signs[:, None]


def _centered(x: Matrix, mean: np.ndarray) -> LinearOperator:
    """``x - mean`` as an operator, so that a sparse `x` stays sparse."""
    return LinearOperator(
        x.shape,
        matvec=lambda v: x @ v - mean @ v,
        rmatvec=lambda u: x.T @ u - mean * u.sum(axis=0),
        matmat=lambda v: x @ v - mean @ v,
        rmatmat=lambda u: x.T @ u - mean[:, None] * u.sum(axis=0),
        dtype=np.dtype(np.float64),
    )


def _correlation(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pearson correlation of every column with `target`; 0 where either is constant."""
    if len(target) < 2:
        return np.zeros(scores.shape[1])
    a, b = scores - scores.mean(axis=0), target - target.mean()
    norm = np.linalg.norm(a, axis=0) * np.linalg.norm(b)
    return (b @ a) * _reciprocal(norm)


def _geometric_mean(x: Matrix, axis: Literal[0, 1]) -> np.ndarray:
    """``exp(mean(log1p(x)))`` over `axis`."""
    return np.exp(totals(_log1p(x), axis=axis) / x.shape[axis])


def _typical(depth: np.ndarray) -> np.ndarray:
    """Median of the positive values; 0 where there is none."""
    return np.median(depth[depth > 0]) if (depth > 0).any() else np.zeros(())


def _reciprocal(values: np.ndarray) -> np.ndarray:
    """``1 / values``, 0 for 0."""
    return np.divide(1.0, values, out=np.zeros(np.shape(values)), where=values != 0)


def _scale_rows(x: Matrix, factor: np.ndarray) -> Matrix:
    factor = factor.astype(np.float32)
    if not sp.issparse(x):
        return x * factor[:, None]
    return _with_data(x, x.data * np.repeat(factor, np.diff(x.indptr)))


def _scale_columns(x: Matrix, factor: np.ndarray) -> Matrix:
    factor = factor.astype(np.float32)
    return _with_data(x, x.data * factor[x.indices]) if sp.issparse(x) else x * factor


def _log1p(x: Matrix) -> Matrix:
    return _with_data(x, np.log1p(x.data)) if sp.issparse(x) else np.log1p(x)


def _expm1(y: np.ndarray, most: float | np.ndarray) -> np.ndarray:
    """``exp(y) - 1``, at most `most`: no feature has more than all counts of a cell."""
    return np.expm1(np.minimum(y, np.log1p(most).astype(np.float32)))


def _with_data(x: sp.csr_matrix | sp.csr_array, data: np.ndarray) -> sp.csr_matrix:
    """The same sparsity with other values."""
    return sp.csr_matrix((data, x.indices, x.indptr), shape=x.shape)
