"""How two sets of cells differ, each figure on cells that nothing was fitted to: `measure`.

Three figures: the log-likelihood-ratio distance of a density family, the AUC of classifiers, and the shares of cells
inside the other set's support. `measure` knows its sets as rows of one `Pool`, so that a null is the same code called
with other rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celltransfer.nn.flows import Density

LOG_2PI = float(np.log(2 * np.pi))
FLOWS = ("realnvp", "spline", "continuous")
FAMILIES = ("gaussian", "mixture", *FLOWS)
# Cells are reduced to so many components, and to no more than one for so many cells.
MAX_COMPONENTS = 50
CELLS_PER_COMPONENT = 8
# Directions with less than this share of the largest variance are rounding.
RANK_TOLERANCE = 1e-10
N_FOLDS = 4
N_FOLDS_FLOW = 2
# Neighbours that classify, and that bound the supports.
CLASSIFIER_NEIGHBOURS = (5, 15)
SUPPORT_NEIGHBOURS = 5
# A translation that picks target cells repeats them; rows that more cells share are values, not copies.
MAX_COPIES = 5
MIXTURE_SIZES = (2, 4, 8, 16)
ADAPT_STEPS = 3
STRENGTHS = (1.0, 8.0, 64.0)
FLOW_OPTIONS = {"blocks": 4, "hidden": (64, 64)}
FLOW_STEPS, FLOW_PATIENCE = 1000, 4
# Share of all three models' mean in each flow: a flow has no bound on how improbable it calls a cell that it never saw.
FLOW_FLOOR = 0.01


class Gap(NamedTuple):
    """What `measure` finds; all means over held-out cells.

    ``distance`` in nats, ``auc`` of the best classifier, and the shares of the first set's cells inside the second's
    support (``covered_first``) and the other way round (``covered_second``).
    """

    distance: float
    auc: float
    covered_first: float
    covered_second: float


@dataclass(frozen=True)
class Pool:
    """All cells of one comparison in common coordinates that know nothing of which set a cell is of.

    Attributes
    ----------
    white
        Components of the standardised features with covariance 1, shape (n, q): nothing depends on the units or the
        correlations of the features.
    distance
        Between all cells, in the components as they are, shape (n, n).
    held
        Cells to evaluate on, shape (n,); the others are always fitted to.
    twin
        Number of the row among all different rows, shape (n,).
    start
        Mixture of all cells that the mixtures of the two sets start from.
    """

    white: np.ndarray
    distance: np.ndarray
    held: np.ndarray
    twin: np.ndarray
    start: Mixture | None = None


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians: weights (k,), means (k, q), covariances (k, q, q)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def joint(self, x: np.ndarray) -> np.ndarray:
        """Log of weight times density of every component, shape (n, k)."""
        parts = [gaussian_log_prob(x, m, c) for m, c in zip(self.means, self.covariances, strict=True)]
        return np.column_stack(parts) + np.log(self.weights)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-density of cells (n, q), shape (n,)."""
        return logsumexp(self.joint(x), axis=1)

    def adapt(self, x: np.ndarray, strengths: Sequence[float] = (1.0,)) -> list[Mixture]:
        """The mixture after some steps of EM on `x`, for each strength with which components are held to this one.

        A strength is a number of cells that say what this mixture says, in units of the free parameters of a row of a
        covariance, q + 1. All strengths share the steps of the first.
        """
        now = [self]
        for step in range(ADAPT_STEPS):
            joint = now[0].joint(x)
            share = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
            now = self._maximise(x, share, strengths if step == ADAPT_STEPS - 1 else strengths[:1])
        return now

    def _maximise(self, x: np.ndarray, share: np.ndarray, strengths: Sequence[float]) -> list[Mixture]:
        """Maximum a posteriori given the components' shares in the cells, (n, k)."""
        k, q = self.means.shape
        count = share.sum(axis=0)
        sums = share.T @ x
        squares = np.stack([(share[:, [j]] * x).T @ x for j in range(k)])
        fitted = []
        for strength in strengths:
            prior = strength * (q + 1)
            means = (sums + strength * self.means) / (count + strength)[:, None]
            cross = np.einsum("ki,kj->kij", sums, means)
            scatter = squares - cross - cross.transpose(0, 2, 1) + np.einsum("k,ki,kj->kij", count, means, means)
            covariances = (scatter + prior * self.covariances) / (count + prior)[:, None, None]
            weights = (count + strength * self.weights) / (len(x) + strength)
            fitted.append(Mixture(weights, means, covariances))
        return fitted


def make_pool(
    cells: np.ndarray, held: np.ndarray, n_shape: int, blur: tuple[float, int, np.random.Generator] | None = None
) -> Pool:
    """Put cells, shape (n, d), into common coordinates, found on the first `n_shape` of them.

    `blur` is a share r, a number n and a source of randomness: Gaussian noise of r times the standard deviation that a
    principal component has in the cells from number n on, the target's, blurs what is finer. Copies get the same.

    More than 50 features, or more than one for 8 cells, are reduced to principal components of both sets together,
    with the length of what the components leave out as one more coordinate: a cell off the others' plane stays off.
    """
    centre, sd = cells[:n_shape].mean(axis=0), cells[:n_shape].std(axis=0)
    standard = (cells - centre)[:, sd > 0] / sd[sd > 0]
    _, s, vt = np.linalg.svd(standard[:n_shape], full_matrices=False)
    kept = int(np.count_nonzero(s**2 > RANK_TOLERANCE * s[0] ** 2))
    limit = max(1, min(MAX_COMPONENTS, n_shape // CELLS_PER_COMPONENT))
    scaled = standard @ vt[: min(kept, limit)].T
    if kept > limit:
        left = np.sqrt(np.maximum((standard**2).sum(axis=1) - (scaled**2).sum(axis=1), 0))
        scaled = np.column_stack([scaled, left - left[:n_shape].mean()])
    white = scaled / scaled[:n_shape].std(axis=0)
    if kept > limit:
        white = white @ _whitener(white[:n_shape])
    twin = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    if blur is None:
        return Pool(white, _distances(scaled), held, twin)
    share, first, rng = blur
    noise = share * rng.normal(size=(int(twin.max()) + 1, white.shape[1]))[twin]
    white, scaled = (x + noise * x[first:n_shape].std(axis=0) for x in (white, scaled))
    return Pool(white, _distances(scaled), held, twin)


def measure(pool: Pool, first: np.ndarray, second: np.ndarray, family: str, rng: np.random.Generator) -> Gap:
    """Compare two sets of cells, rows of `pool`; every held-out cell is judged by a fit that did not see it."""
    rows = np.concatenate([first, second])
    is_first = np.arange(len(rows)) < len(first)
    n_folds = N_FOLDS_FLOW if family in FLOWS else N_FOLDS
    fold = _folds(pool, rows, is_first, n_folds, rng)
    ratios, aucs, inside = [], [], np.full(len(rows), np.nan)
    for number in range(n_folds):
        test = fold == number
        fit = ~test
        sides = (rows[fit & is_first], rows[fit & ~is_first])
        ratio = _log_ratio(pool, sides, rows[test], is_first[test], family, int(rng.integers(2**31)))
        ratios.append([r[is_first[test]].mean() + r[~is_first[test]].mean() for r in ratio])
        near, inside[test] = _neighbours(pool.distance, sides, rows[test], is_first[test])
        odds = _logistic(pool.white, sides, rows[test])
        # A ball of radius r holds cells as r to the power of the dimension: d log(r / r') are log-odds too.
        aucs.append([_auc(score, is_first[test]) for score in (odds, odds + pool.white.shape[1] * near)])
    judged = fold >= 0
    one, other = judged & is_first, judged & ~is_first
    return Gap(
        distance=float(np.mean(ratios, axis=0).max()),
        auc=float(np.mean(aucs, axis=0).max()),
        covered_first=float(inside[one].mean()),
        covered_second=float(inside[other].mean()),
    )


def background(pool: Pool, second: np.ndarray, family: str, rng: np.random.Generator) -> tuple[str, Pool]:
    """The density family, and the pool with the start of its mixtures, by likelihood of held-out cells of `second`.

    Components of a mixture start from all cells of the pool, with one covariance, so that both sets' have the same.
    """
    if family not in ("auto", "mixture"):
        return family, pool
    order = rng.permutation(second)
    fit, test = pool.white[order[::2]], pool.white[order[1::2]]
    others = np.delete(pool.white, order[1::2], axis=0)
    best, best_likelihood = 1, -np.inf
    for size in MIXTURE_SIZES:
        if size * CELLS_PER_COMPONENT > len(fit):
            break
        start = _start(others, size, int(rng.integers(2**31)))
        likelihood = max(float(model.log_prob(test).mean()) for model in start.adapt(fit, STRENGTHS))
        if likelihood <= best_likelihood:
            break
        best, best_likelihood = size, likelihood
    if family == "auto" and gaussian_log_prob(test, *_moments(fit)).mean() >= best_likelihood:
        return "gaussian", pool
    return "mixture", replace(pool, start=_start(pool.white, best, int(rng.integers(2**31))))


def gaussian_log_prob(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log-density of cells (n, q) under a Gaussian, shape (n,)."""
    factor = np.linalg.cholesky(covariance)
    z = solve_triangular(factor, (x - mean).T, lower=True, check_finite=False)
    return -0.5 * (z**2).sum(axis=0) - np.log(np.diag(factor)).sum() - 0.5 * len(mean) * LOG_2PI


def _log_ratio(
    pool: Pool,
    sides: tuple[np.ndarray, np.ndarray],
    test: np.ndarray,
    is_first: np.ndarray,
    family: str,
    seed: int,
) -> list[np.ndarray]:
    """Log-density of each cell under its own set's model minus that under the shared one, shape (len(test),).

    One for each way to regularise: any is a lower bound where the family holds equal mixtures, so the largest counts.
    """
    one, other = (pool.white[side] for side in sides)
    x = pool.white[test]
    if family == "gaussian":
        models = [_moments(one), _moments(other)]
        found = [tuple(gaussian_log_prob(x, *model) for model in [*models, _mean_moments(*models)])]
    elif family == "mixture":
        assert pool.start is not None
        pairs = zip(*(pool.start.adapt(side, STRENGTHS) for side in (one, other)), strict=True)
        likelihoods = [(first.log_prob(x), second.log_prob(x)) for first, second in pairs]
        # The family holds equal mixtures of its members, so the shared model is one, and the distance 2 JSD.
        found = [(first, second, np.logaddexp(first, second) - np.log(2)) for first, second in likelihoods]
    else:
        found = [_flows(family, one, other, x, seed)]
    return [np.where(is_first, first, second) - shared for first, second, shared in found]


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, shrunk to that of all cells as Ledoit and Wolf: cells have covariance 1 in common."""
    from sklearn.covariance import ledoit_wolf

    mean, q = x.mean(axis=0), x.shape[1]
    if q == 1:
        return mean, np.maximum(x.var(axis=0, keepdims=True), 1e-6)
    covariance = ledoit_wolf(x - mean, assume_centered=True)[0]
    return mean, covariance + 1e-6 * np.eye(q)


def _mean_moments(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the equal mixture of two laws."""
    gap = one[0] - other[0]
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2 + np.outer(gap, gap) / 4


def _start(x: np.ndarray, size: int, seed: int) -> Mixture:
    """A mixture of all cells, held to one with equal covariances."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(size, covariance_type="tied", max_iter=20, tol=1e-2, reg_covar=1e-4, random_state=seed)
    with warnings.catch_warnings():
        # A start need not have converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
    covariances = np.repeat(model.covariances_[None], size, axis=0)
    return Mixture(np.maximum(model.weights_, 1e-12), model.means_, covariances).adapt(x)[0]


def _flows(
    family: str, one: np.ndarray, other: np.ndarray, x: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-densities of `x` under flows fitted to each set and to both; the former start where the latter ended."""
    import copy

    import torch

    from celltransfer.nn.flows import density, fit_density

    def tensor(cells: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(cells, dtype=torch.float32)

    def fit(module: Density, cells: np.ndarray) -> Density:
        train, held = tensor(cells[len(cells) // 5 :]), tensor(cells[: len(cells) // 5])
        fit_density(module, train, held, max_steps=FLOW_STEPS, patience=FLOW_PATIENCE, seed=seed)
        return module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared = density(family, x.shape[1], **FLOW_OPTIONS)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    one, other = rng.permutation(one), rng.permutation(other)
    size = max(len(one), len(other))
    fit(shared, rng.permutation(np.vstack([np.resize(side, (size, x.shape[1])) for side in (one, other)])))
    modules = [fit(copy.deepcopy(shared), side) for side in (one, other)]
    with torch.no_grad():
        first, second, both = (m.log_prob(tensor(x)).double().numpy() for m in [*modules, shared])
    floor = np.log(FLOW_FLOOR / 3) + logsumexp([first, second, both], axis=0)
    return np.logaddexp(first, floor), np.logaddexp(second, floor), np.logaddexp(both, floor)


def _neighbours(
    distance: np.ndarray, sides: tuple[np.ndarray, np.ndarray], test: np.ndarray, is_first: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much nearer the k-th neighbours in the first set are, as log ratio, and who is inside the other's support.

    The support of a set is the union of balls around its cells, each as far as its 5th neighbour there.
    """
    reached, inside = [], np.empty(len(test), dtype=bool)
    ks = [min(k, min(map(len, sides)) - 1) for k in CLASSIFIER_NEIGHBOURS]
    for side, other in ((sides[0], ~is_first), (sides[1], is_first)):
        reach = min(SUPPORT_NEIGHBOURS, len(side) - 1)
        radius = np.partition(distance[np.ix_(side, side)], reach, axis=1)[:, reach]
        to_side = distance[np.ix_(test, side)]
        inside[other] = (to_side[other] <= radius).any(axis=1)
        nearest = np.partition(to_side, [k - 1 for k in ks], axis=1)
        reached.append(np.log(nearest[:, [k - 1 for k in ks]] + 1e-6).mean(axis=1))
    return reached[1] - reached[0], inside


def _logistic(points: np.ndarray, sides: tuple[np.ndarray, np.ndarray], test: np.ndarray) -> np.ndarray:
    """Log-odds of the first set by a logistic regression on values and squares."""
    from sklearn.linear_model import LogisticRegression

    fit = np.concatenate(sides)
    features = np.hstack([points, points**2])
    centre, sd = features[fit].mean(axis=0), features[fit].std(axis=0)
    features = (features - centre) / np.where(sd > 0, sd, 1)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=200)
    return model.fit(features[fit], np.arange(len(fit)) < len(sides[0])).decision_function(features[test])


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m))


def _folds(pool: Pool, rows: np.ndarray, is_first: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of every held-out cell, -1 for the others, shape (len(rows),); a cell and its copies share one.

    A classifier that knows the copy of a cell would call the cell the copy's set.
    """
    fold = np.full(len(rows), -1)
    for side in (is_first, ~is_first):
        held = np.flatnonzero(side & pool.held[rows])
        fold[rng.permutation(held)] = np.arange(len(held)) % n_folds
    for copies in _copies(pool.twin[rows]):
        if (fold[copies] >= 0).all():
            fold[copies] = fold[copies[0]]
    return fold


def _copies(twin: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of 2 to 5 equal rows."""
    _, number, count = np.unique(twin, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    ends = np.cumsum(count)
    for group in np.flatnonzero((count > 1) & (count <= MAX_COPIES)):
        yield order[ends[group] - count[group] : ends[group]]


def _distances(x: np.ndarray) -> np.ndarray:
    square = (x**2).sum(axis=1)
    square = square[:, None] + square - 2 * x @ x.T
    return np.sqrt(np.maximum(square, 0), dtype=np.float32)


def _whitener(x: np.ndarray) -> np.ndarray:
    """Matrix (q, q) that gives the cells covariance 1."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return vectors / np.sqrt(np.maximum(values, RANK_TOLERANCE * values[-1]))
