"""Signed assignments: which component of the target is which of the source, and with which sign."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from celltransfer.translators.adversarial.one_anchor.cloud import Cloud

# Starts of the local search, and assignments that are returned.
STARTS, KEPT = 16, 8
QUANTILES = (np.arange(64) + 0.5) / 64
MOST = 3.0


def exchanges(d: int) -> np.ndarray:
    """Signed permutations that flip one coordinate or exchange two, with any signs; shape (d + 2 d (d - 1), d, d)."""
    found = []
    for i in range(d):
        flip = np.eye(d)
        flip[i, i] = -1
        found.append(flip)
        for j in range(i):
            for first, second in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                swap = np.eye(d)
                swap[i, i] = swap[j, j] = 0
                swap[i, j], swap[j, i] = first, second
                found.append(swap)
    return np.stack(found)


def by_features(source: Cloud, target: Cloud, noise: float, seed: int) -> np.ndarray:
    """Signed permutations of features, shape (maps, d, d), the likeliest first.

    Normal scores are compared, so that any monotone change of single features is no matter.
    """
    (x, a), (y, b) = source.scores, target.scores
    # Ranks of n cells have variance p (1 - p) / n; scores at the centre, where the density is .4, about 1.6 / n.
    variance = 2 * 1.6 * (1 + a**2 / 2).mean() / min(len(x), len(y)) + 2 * noise**2
    return assign(x, y, a, b, float(variance), seed)


def by_components(source: Cloud, target: Cloud, noise: float, seed: int) -> np.ndarray:
    """Rotations of the white source that take independent components to components, shape (maps, r, r)."""
    found = []
    d = source.white.shape[1]
    variance = max(0.05**2, d / min(len(source.cells), len(target.cells))) + 2 * noise**2
    for contrast in ("logcosh", "cube"):
        own, other = (independent_axes(side.white, contrast, seed) for side in (source, target))
        clouds = (source.white @ own.T, target.white @ other.T, source.white_anchors @ own.T)
        signed = assign(*clouds, target.white_anchors @ other.T, variance, seed)
        found.append(other.T @ signed @ own)
    return np.concatenate(found)


def independent_axes(white: np.ndarray, contrast: str, seed: int) -> np.ndarray:
    """Orthonormal axes of independent components of white cells, shape (r, r); some axes where they have none."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Gaussian cells have no components; what is returned is one start among others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = FastICA(whiten=False, fun=contrast, random_state=seed, max_iter=100, tol=1e-4).fit(white)
    return np.asarray(model.components_)


def assign(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, variance: float, seed: int) -> np.ndarray:
    """Signed permutations that take components x (n, d) with anchors a (k, d) to y (m, d) with b (k, d).

    Minimised are squared sampling errors: of the quantiles of single components, of the moments of pairs, and of the
    anchors, whose coordinates have `variance`. From each start of several, exchanges are made as long as they help.

    Returns
    -------
    numpy.ndarray
        The best of the assignments found, shape (maps, d, d), at most `KEPT`.
    """
    problem = _Problem(x, y, a, b, variance)
    rng, d = np.random.default_rng([seed, 17]), x.shape[1]
    moves, best = exchanges(d), problem.single.min(axis=0)
    found: dict[bytes, tuple[float, np.ndarray]] = {}
    for start in range(STARTS):
        changed = best if start == 0 else best * rng.exponential(size=best.shape) if start % 2 else rng.random((d, d))
        columns = linear_sum_assignment(changed)[1]
        signs = np.where(problem.single[0] <= problem.single[1], 1.0, -1.0)[np.arange(d), columns]
        signed = np.zeros((d, d))
        signed[np.arange(d), columns] = signs
        cost = float(problem.cost(signed[None])[0])
        while True:
            near = moves @ signed
            costs = problem.cost(near)
            if costs.min() >= cost - 1e-9:
                break
            cost, signed = float(costs.min()), near[costs.argmin()]
        found[signed.tobytes()] = cost, signed
    return np.stack([signed for _, signed in sorted(found.values(), key=lambda pair: pair[0])[:KEPT]])


class _Problem:
    """Costs of signed permutations."""

    def __init__(self, x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, variance: float) -> None:
        n = min(len(x), len(y))
        own, other = (np.quantile(side, QUANTILES, axis=0) for side in (x, y))
        # Of one sign and the other, shape (2, target, source).
        self.single = np.stack(
            [
                ((other[:, :, None] - signed[:, None]) ** 2).mean(axis=0) * n / 2
                + ((b[:, :, None] - sign * a[:, None]) ** 2).sum(axis=0) / variance
                for sign, signed in ((1, own), (-1, -own[::-1]))
            ]
        )
        (self._own, spread), (self._other, spread_other) = pair_moments(x), pair_moments(y)
        self._weight = 1 / (spread / len(x) + spread_other / len(y))

    def cost(self, signed: np.ndarray) -> np.ndarray:
        """Of a batch (m, d, d), shape (m,)."""
        negative = signed < 0
        cost = (np.where(negative, self.single[1], self.single[0]) * (signed != 0)).sum(axis=(1, 2))
        # Products change sign with either component, covariances of squares with neither, mixed ones with the second.
        plain, turned = np.abs(signed), signed.transpose(0, 2, 1)
        moved = (
            signed @ self._own[0] @ turned,
            plain @ self._own[1] @ plain.transpose(0, 2, 1),
            plain @ self._own[2] @ turned,
        )
        for i, moments in enumerate(moved):
            cost = cost + self._weight[i] / 2 * ((moments - self._other[i]) ** 2).sum(axis=(1, 2))
        return np.asarray(cost)


def pair_moments(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E s_i s_j, Cov(s_i^2, s_j^2) and E s_i^2 s_j off the diagonal, (3, d, d), and their mean variances (3,)."""
    cells = np.clip(cells, -MOST, MOST)
    squares = cells**2 - (cells**2).mean(axis=0)
    off = 1 - np.eye(cells.shape[1])
    moments, spreads = [], []
    for first, second in ((cells, cells), (squares, squares), (squares, cells)):
        moment = first.T @ second / len(cells)
        spread = (first**2).T @ second**2 / len(cells) - moment**2
        moments.append(moment * off)
        spreads.append(float((spread * off).sum() / max(off.sum(), 1)) + 1e-12)
    return np.stack(moments), np.array(spreads)
