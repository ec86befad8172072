"""Coordinates of cells, and maps of them that could be symmetries: turns of planes, swaps of clusters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.spatial.distance import cdist

if TYPE_CHECKING:
    from celltransfer.data.pair import Matrix

Axes = Literal["components", "features"]
Move = Callable[[np.ndarray], np.ndarray]

# Components with less than this share of the variance are not searched: noise is symmetric always.
MIN_VARIANCE = 0.02
# Clusters are swapped if so many cells are in each, and the density half-way to any other is this share of theirs.
CLUSTER_COUNTS, MIN_SHARE, MAX_VALLEY = (2, 3, 4, 5, 6, 8), 0.02, 0.25


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates in which symmetries are looked for.

    Attributes
    ----------
    mean
        Mean of the cells, shape (d,).
    axes
        Orthonormal directions, shape (m, d).
    sd
        Standard deviation of the cells along them, shape (m,).
    total
        Variance of the cells, summed over all d features.
    names
        Names of the axes.
    """

    mean: np.ndarray
    axes: np.ndarray
    sd: np.ndarray
    total: float
    names: tuple[str, ...]

    @classmethod
    def fit(cls, x: np.ndarray, n_components: int, axes: Axes, seed: int) -> Frame:
        """Leading principal components (or features) of `x`, shape (n, d), that carry variance."""
        mean, variance = x.mean(axis=0), x.var(axis=0)
        total = float(variance.sum())
        n_components = min(n_components, x.shape[1], len(x) - 1)
        if axes == "features":
            order = np.argsort(-variance, kind="stable")[:n_components]
            directions, spread, prefix = np.eye(x.shape[1])[order], variance[order], "feature "
        else:
            directions, spread = _principal(x - mean, n_components, seed)
            order, prefix = np.arange(1, n_components + 1), "PC"
        kept = spread > max(MIN_VARIANCE * total, 1e-12)
        names = tuple(f"{prefix}{i}" for i in order[kept])
        return cls(mean, directions[kept], np.sqrt(spread[kept]), total, names)

    def whiten(self, x: Matrix) -> np.ndarray:
        """Standardised coordinates of cells, shape (n, m)."""
        # (x - mean) A' without making a sparse x dense.
        return np.asarray(x @ self.axes.T - self.mean @ self.axes.T, dtype=np.float64) / self.sd


@dataclass(frozen=True, eq=False)
class Linear:
    """u -> Q u about the mean."""

    matrix: np.ndarray

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Moved coordinates, shape (n, m)."""
        return u @ self.matrix.T


@dataclass(frozen=True, eq=False)
class ClusterSwap:
    """Exchange two clusters by the optimal transport of one Gaussian onto the other; all other cells stay.

    Attributes
    ----------
    centres
        All clusters, in the coordinates scaled by `sd`, shape (K, m).
    a, b
        The two that are exchanged.
    there, back
        Linear parts of the map from `a` to `b` and of its inverse, shape (m, m).
    mean_a, mean_b
        Their means, shape (m,).
    """

    centres: np.ndarray
    sd: np.ndarray
    a: int
    b: int
    mean_a: np.ndarray
    mean_b: np.ndarray
    there: np.ndarray
    back: np.ndarray

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Moved coordinates, shape (n, m)."""
        cluster = cdist(u * self.sd, self.centres).argmin(axis=1)
        out = u.copy()
        in_a, in_b = cluster == self.a, cluster == self.b
        out[in_a] = self.mean_b + (u[in_a] - self.mean_a) @ self.there.T
        out[in_b] = self.mean_a + (u[in_b] - self.mean_b) @ self.back.T
        return out


@dataclass(frozen=True, eq=False)
class Composition:
    """u -> outer(inner(u))."""

    outer: Move
    inner: Move

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Moved coordinates, shape (n, m)."""
        return self.outer(self.inner(u))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A map to be tested. `view`: the coordinates it acts on, shape (r, m); ``None`` for all of them."""

    kind: str
    label: str
    move: Move
    view: np.ndarray | None = None


def turn(angle: float, det: int) -> np.ndarray:
    """Rotation by `angle` degrees, or the reflection that leaves the line at that angle in place, shape (2, 2)."""
    t = np.deg2rad(angle if det > 0 else 2 * angle)
    return np.array([[np.cos(t), -det * np.sin(t)], [np.sin(t), det * np.cos(t)]])


def flip(basis: np.ndarray, names: tuple[str, ...], i: int) -> Candidate:
    """Change of sign along row `i` of an orthonormal `basis`, shape (m, m)."""
    axis = basis[i]
    matrix = np.eye(len(axis)) - 2 * np.outer(axis, axis)
    return Candidate("flip", f"flip of {names[i]}", Linear(matrix), axis[None])


def planar(basis: np.ndarray, names: tuple[str, ...], pair: tuple[int, ...], angle: float, det: int) -> Candidate:
    """Rotation (det 1) or reflection (det -1) of the plane of two rows of an orthonormal `basis`."""
    plane = basis[list(pair)]
    matrix = np.eye(plane.shape[1]) + plane.T @ (turn(angle, det) - np.eye(2)) @ plane
    both = f"{names[pair[0]]} and {names[pair[1]]}"
    if det > 0:
        kind, label = "rotation", f"rotation of {both} by {angle:.0f} degrees"
    elif angle in (0, 90):
        kind, label = "flip", f"flip of {names[pair[angle == 0]]}"
    elif angle in (45, 135):
        kind, label = "swap", f"swap of {both}{' with a change of sign' if angle == 135 else ''}"
    else:
        kind, label = "reflection", f"reflection of {both} at the line at {angle:.0f} degrees"
    return Candidate(kind, label, Linear(matrix), plane)


def cluster_swaps(u: np.ndarray, sd: np.ndarray, seed: int) -> list[Candidate]:
    """Swaps of two clusters of like weight with a gap around them."""
    from sklearn.cluster import KMeans

    found = []
    for count in CLUSTER_COUNTS:
        if len(u) < 20 * count:
            break
        fitted = KMeans(count, n_init=2, random_state=seed).fit(u * sd)
        cluster, centres = fitted.labels_, fitted.cluster_centers_
        share = np.bincount(cluster, minlength=count) / len(u)
        apart = [_is_apart(u * sd, cluster, centres, i) and share[i] >= MIN_SHARE for i in range(count)]
        for a, b in combinations([i for i in range(count) if apart[i]], 2):
            if 0.5 < share[a] / share[b] < 2:
                label = f"swap of two clusters of {share[a]:.0%} and {share[b]:.0%} of the cells"
                found.append(Candidate("cluster swap", label, _exchange(u, sd, cluster, centres, a, b)))
    return found


def _is_apart(points: np.ndarray, cluster: np.ndarray, centres: np.ndarray, i: int) -> bool:
    """Whether few cells lie half-way to any other cluster, so that moving cluster `i` tears no neighbours apart."""
    for j in range(len(centres)):
        way = centres[j] - centres[i]
        t = (points[(cluster == i) | (cluster == j)] - centres[i]) @ way / max(float(way @ way), 1e-12)
        start, middle, end = (int((np.abs(t - at) < 0.1).sum()) for at in (0, 0.5, 1))
        if j != i and middle > MAX_VALLEY * min(start, end):
            return False
    return True


def _exchange(u: np.ndarray, sd: np.ndarray, cluster: np.ndarray, centres: np.ndarray, a: int, b: int) -> ClusterSwap:
    in_a, in_b = u[cluster == a], u[cluster == b]
    ridge = 1e-6 * np.eye(u.shape[1])
    cov_a, cov_b = (np.atleast_2d(np.cov(part.T)) + ridge for part in (in_a, in_b))
    # The optimal transport of N(., A) onto N(., B): A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2.
    root = _power(cov_a, 0.5)
    inverse = _power(cov_a, -0.5)
    there = inverse @ _power(root @ cov_b @ root, 0.5) @ inverse
    return ClusterSwap(centres, sd, a, b, in_a.mean(axis=0), in_b.mean(axis=0), there, np.linalg.inv(there))


def compose(outer: Move, inner: Move) -> Move:
    """Inner map first; linear where both are."""
    if isinstance(outer, Linear) and isinstance(inner, Linear):
        return Linear(outer.matrix @ inner.matrix)
    return Composition(outer, inner)


def _principal(x: np.ndarray, n_components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading principal directions, shape (m, d), and variances of centred `x`."""
    if x.shape[1] <= 500:
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        directions, spread = vectors.T[::-1][:n_components], values[::-1][:n_components]
    else:
        from sklearn.utils.extmath import randomized_svd

        _, singular, directions = randomized_svd(x, n_components, n_iter=4, random_state=seed)
        spread = singular**2 / len(x)
    largest = np.abs(directions).argmax(axis=1)
    return directions * np.sign(directions[np.arange(len(directions)), largest])[:, None], spread


def independent_axes(u: np.ndarray, seed: int) -> np.ndarray:
    """Orthonormal axes of independent components of whitened cells, shape (m, m)."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    if u.shape[1] < 2:
        return np.eye(u.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return FastICA(whiten=False, random_state=seed, max_iter=100, tol=1e-3).fit(u).components_


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-12) ** exponent) @ vectors.T


def lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean length of each row."""
    return np.sqrt((rows**2).sum(axis=1))
