"""The adversarial twin: a second map that the evidence likes as well, and that disagrees as much as it can.

Matching laws and fitting anchors leaves a map open as far as there is another that does both as well. Looking for that
other map measures how far: where the search fails the map is pinned down, where it succeeds nothing tells them apart.

>>> twin = find_twin(translated, cells)  # doctest: +SKIP
>>> twin.disagreement  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from celltransfer.errors import InputError
from celltransfer.metrics import scores
from celltransfer.verdict.symmetry_maps import independent_axes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Dimensions that are turned, cells a side that the search looks at, and cells a side that confirm what it found.
N_DIRECTIONS, SEARCH_CELLS, CONFIRM_CELLS = 6, 300, 1000
# Angles per plane, rounds over all planes, independent searches, starts by matching for each of them, and their steps.
N_ANGLES, N_ROUNDS, N_SEARCHES, N_MATCHES, N_STEPS = 16, 2, 5, 6, 8
# How many standard errors the twin's distance to the target cells may exceed the map's.
Z_DISTANCE = 1.64
# Cells a side that rule out most turns, where they exceed it by more than so many.
COARSE_CELLS, COARSE_Z = 100, 4.0
# How much less likely the twin may make the anchors, in nats (a likelihood-ratio test at 5 %, one degree of freedom).
NATS = 1.92
# A translation that varies by less than this is one place, and has no twin that differs.
MIN_SPREAD = 1e-6
# A direction with this share of the translated cells' variance is one that they tell apart.
OWN_SHARE = 0.02
# Share of the spread of target cells that anchors are always allowed to miss by.
NOISE_FLOOR = 0.05


@dataclass(frozen=True)
class Twin:
    """The most different map that the search found; result of `find_twin`.

    Attributes
    ----------
    disagreement
        FOSCTTM of the map's translations against the twin's: 0 is the same map, 0.5 one that is unrelated, and above
        0.5 one that sends cells to the other end. The second largest of five searches on samples of the cells.
    low, high
        Its range over the searches, widened by the error of sampling cells (95 %).
    distance, twin_distance
        Energy distance to the target cells of the map and of the twin (at the target cells' spread).
    """

    disagreement: float
    low: float
    high: float
    distance: float
    twin_distance: float


@dataclass(frozen=True)
class _Anchors:
    """Anchors: translated and true, shapes (k, q), and the variance by which a map may miss them, shape (q,)."""

    translated: np.ndarray
    actual: np.ndarray
    noise: np.ndarray

    def of(self, basis: np.ndarray) -> _Anchors:
        """The same in other coordinates."""
        noise = np.einsum("ij,i,ij->j", basis, self.noise, basis)
        return _Anchors(self.translated @ basis, self.actual @ basis, noise)


def find_twin(
    translated: np.ndarray,
    cells: np.ndarray,
    anchor_translated: np.ndarray | None = None,
    anchor_cells: np.ndarray | None = None,
    *,
    noise: np.ndarray | None = None,
    seed: int = 0,
) -> Twin:
    r"""Look for a map as good as F that disagrees with it.

    Twins are :math:`G = R F`, with R an orthogonal map of the leading directions of the translated and the target
    cells: planar turns and reflections on top of each other, from the identity and from matches of the two clouds
    that start at random (nearest neighbours and Procrustes in turn, anchors kept). They are searched as the cells are
    and in coordinates of independent components made Gaussian one by one, where a turn is a curved map of the cells.
    G is admitted where

    .. math:: D_E(G, Y) \le D_E(F, Y) + 1.64 \, SE, \qquad \ell(G) \ge \ell(F) - 1.92,

    with the energy distance to the target cells, the standard error of the difference over cells of both sides, and
    the log-likelihood of the anchors under Gaussian errors of the size that F has. Distances need not be small, only no
    larger than those of F: a map that does not match the target cells has twins for that reason alone.

    Parameters
    ----------
    translated
        Translated source cells F(x), shape (n, q), in a space where directions count alike (such as z-scored
        components, the leading ones first).
    cells
        Target cells in it, shape (m, q).
    anchor_translated, anchor_cells
        Translations of anchors by a fit that saw them, and their true target cells, shape (k, q) both.
    noise
        Variance per direction by which F misses a cell it has not seen, shape (q,), where left-out anchors tell.
        ``None``: what the translations leave of the target cells' variance.
    seed
        Seed of samples and starts.

    References
    ----------
    Székely & Rizzo 2013, *Energy statistics*, for the distance; Moriakov et al. 2020, for why twins exist.
    """
    shapes = translated.shape, cells.shape
    if translated.ndim != 2 or cells.ndim != 2 or shapes[0][1] != shapes[1][1] or min(shapes[0][0], shapes[1][0]) < 4:
        raise InputError(f"Twins are looked for among 4 or more cells a side, in one space; got {shapes}.")
    rng = np.random.default_rng([seed, 41])
    f, y = (side[rng.permutation(len(side))[:CONFIRM_CELLS]].astype(np.float64) for side in (translated, cells))
    centres = translated.mean(axis=0), cells.mean(axis=0)
    f, y = f - centres[0], y - centres[1]
    widen = widening(f, y)
    pairs = [np.empty((0, f.shape[1])) if side is None else side for side in (anchor_translated, anchor_cells)]
    noise = y.var(axis=0) - f.var(axis=0) if noise is None else noise
    noise = np.maximum(noise, NOISE_FLOOR * max(float(y.var(axis=0).mean()), MIN_SPREAD))
    anchors = _Anchors((pairs[0] - centres[0]) @ widen, pairs[1] - centres[1], noise)
    distance = scores.energy_distance(f, y)
    if np.square(f).mean() < MIN_SPREAD * np.square(y).mean():
        return Twin(0.0, 0.0, 0.0, distance, distance)
    f = f @ widen
    found = [_one(f, y, anchors, rng, int(rng.integers(2**31))) for _ in range(N_SEARCHES)]
    found.sort(key=lambda pair: pair[0].mean())
    # What was found twice is no accident of the sample.
    (smallest, _), (second, twin), (largest, _) = found[0], found[-2], found[-1]
    return Twin(
        disagreement=float(second.mean()),
        low=max(float(smallest.mean()) - _error(smallest), 0.0),
        high=min(float(largest.mean()) + _error(largest), 1.0),
        distance=distance,
        twin_distance=scores.energy_distance(twin, y),
    )


def widening(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Matrix (q, q) that gives translated cells the spread of target cells along their own directions.

    A mean translation is narrow, which is no fault of it, and would hide how it lies among the target cells.
    """
    values, vectors = np.linalg.eigh(f.T @ f / len(f))
    spread = np.square(y @ vectors).mean(axis=0)
    own = values > OWN_SHARE * max(float(values.sum()), MIN_SPREAD)
    factor = np.where(own, np.sqrt(spread / np.maximum(values, MIN_SPREAD * spread)), 1.0)
    return (vectors * np.maximum(factor, 1.0)) @ vectors.T


@dataclass(frozen=True)
class _Space:
    """Coordinates in which the first `r` columns are turned: both clouds, the anchors, and the way back."""

    u: np.ndarray
    v: np.ndarray
    anchors: _Anchors
    r: int
    back: Callable[[np.ndarray], np.ndarray]

    def sample(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> _Space:
        """The same for some of the cells."""
        return replace(self, u=self.u[rows], v=self.v[columns])

    def loss(self, turn: np.ndarray) -> float:
        """Negative log-likelihood of the anchors if translations are turned, in nats up to a constant."""
        missed = self.anchors.translated[:, : self.r] @ turn - self.anchors.actual[:, : self.r]
        return float((np.square(missed) / (2 * self.anchors.noise[: self.r])).sum())

    def turned(self, turn: np.ndarray) -> np.ndarray:
        """Cells of the twin, in the coordinates that the space was made of."""
        return self.back(np.hstack([self.u[:, : self.r] @ turn, self.u[:, self.r :]]))


def _one(
    f: np.ndarray, y: np.ndarray, anchors: _Anchors, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One search: disagreement of every cell, shape (n,), and the twin's cells, shape (n, q)."""
    best = np.zeros(len(f)), f
    for space in (_directions(f, y, anchors), _gaussianised(f, y, anchors, seed)):
        for path in _paths(space.sample(_draw(len(f), rng), _draw(len(y), rng)), rng):
            admits = _Admission(space)
            turn = next((turn for turn in reversed(path[1:]) if admits(turn)), path[0])
            twin = space.turned(turn)
            apart = scores.foscttm_per_cell(f, twin, "euclidean").overall
            if apart.mean() > best[0].mean():
                best = apart, twin
    return best


def _directions(f: np.ndarray, y: np.ndarray, anchors: _Anchors) -> _Space:
    """Leading directions: principal ones of the translated cells by turns with the first coordinates."""
    values, vectors = np.linalg.eigh(f.T @ f / len(f))
    own = vectors[:, ::-1][:, values[::-1] > OWN_SHARE * values.sum()][:, : N_DIRECTIONS - 1]
    basis = np.linalg.qr(np.hstack([own, np.eye(f.shape[1])]))[0]
    r = min(N_DIRECTIONS, f.shape[1])
    return _Space(f @ basis, y @ basis, anchors.of(basis), r, lambda u: u @ basis.T)


def _gaussianised(f: np.ndarray, y: np.ndarray, anchors: _Anchors, seed: int) -> _Space:
    """Independent components of those directions, each made Gaussian by its ranks."""
    plain = _directions(f, y, anchors)
    r = plain.r
    values, vectors = np.linalg.eigh(plain.v[:, :r].T @ plain.v[:, :r] / len(y))
    white = vectors / np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    axes = white @ independent_axes(plain.v[:, :r] @ white, seed).T
    inverse = np.linalg.pinv(axes)
    sides = [np.hstack([side[:, :r] @ axes, side[:, r:]]) for side in (plain.u, plain.v)]
    pairs = [side[:, :r] @ axes for side in (plain.anchors.translated, plain.anchors.actual)]
    flat = [_gaussian(side[:, :r], side[:, :r]) for side in sides]
    noise = np.einsum("ij,i,ij->j", axes, plain.anchors.noise[:r], axes) / np.maximum(
        sides[1][:, :r].var(axis=0), 1e-12
    )
    tied = _Anchors(_gaussian(pairs[0], sides[0][:, :r]), _gaussian(pairs[1], sides[1][:, :r]), noise)

    def back(u: np.ndarray) -> np.ndarray:
        columns = [np.interp(u[:, j], np.sort(flat[0][:, j]), np.sort(sides[0][:, j])) for j in range(r)]
        return plain.back(np.hstack([np.column_stack(columns) @ inverse, u[:, r:]]))

    joined = [np.hstack([side, rest[:, r:]]) for side, rest in zip(flat, sides, strict=True)]
    return _Space(joined[0], joined[1], tied, r, back)


def _gaussian(points: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks that `points` have `among` the cells, column by column."""
    n = len(among)
    below = np.column_stack(
        [
            (np.searchsorted(s, p, side="left") + np.searchsorted(s, p, side="right")) / 2
            for s, p in zip(np.sort(among, axis=0).T, points.T, strict=True)
        ]
    )
    return norm.ppf(np.clip(below / n, 0.5 / n, 1 - 0.5 / n))


class _Admission:
    """Whether a turn is admitted: as near to the target cells as no turn, up to error, and as good for the anchors."""

    def __init__(self, space: _Space) -> None:
        self.space = space
        self.squares = np.square(space.u).sum(axis=1)[:, None] + np.square(space.v).sum(axis=1)
        self.before = np.sqrt(np.maximum(self.squares - 2 * space.u @ space.v.T, 0))
        self.rows, self.columns = self.before.mean(axis=1), self.before.mean(axis=0)
        self.allowed = space.loss(np.eye(space.r)) + NATS
        # Most turns are far off, which few cells tell.
        some = slice(COARSE_CELLS)
        self.coarse = _Admission(space.sample(some, some)) if len(space.u) > 2 * COARSE_CELLS else None

    def __call__(self, turn: np.ndarray) -> bool:
        space = self.space
        if space.loss(turn) > self.allowed:
            return False
        if self.coarse is not None and not self.coarse.near(self.coarse.distance(turn), COARSE_Z):
            return False
        return self.near(self.distance(turn))

    def distance(self, turn: np.ndarray) -> np.ndarray:
        """Distances of turned to target cells, shape (n, m)."""
        space = self.space
        moved = space.u[:, : space.r] @ turn
        dots = moved @ space.v[:, : space.r].T + space.u[:, space.r :] @ space.v[:, space.r :].T
        return np.sqrt(np.maximum(self.squares - 2 * dots, 0))

    def near(self, distance: np.ndarray, z: float = Z_DISTANCE) -> bool:
        """Whether these distances, shape (n, m), are no larger than before, up to `z` standard errors.

        A turn keeps distances among the translated cells, so that those to the target cells alone tell.
        """
        n, m = distance.shape
        rows, columns = distance.mean(axis=1) - self.rows, distance.mean(axis=0) - self.columns
        return bool(rows.mean() <= z * np.sqrt(rows.var() / n + columns.var() / m))


def _paths(space: _Space, rng: np.random.Generator) -> Iterator[list[np.ndarray]]:
    """Admitted turns from the identity on, each further from it than the one before; one path for each start."""
    admits = _Admission(space)
    identity = np.eye(space.r)
    yield _walk(space, admits, [identity], rng)
    starts = [turn for turn in (_match(space, rng) for _ in range(N_MATCHES)) if admits(turn)]
    moment = space.u[:, : space.r].T @ space.u[:, : space.r]
    starts.sort(key=lambda turn: float(np.trace(moment @ turn)))
    if starts:
        yield _walk(space, admits, [identity, starts[0]], rng)


def _walk(space: _Space, admits: _Admission, path: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Turn in one plane after the other, each time as far from the identity as is admitted."""
    moment = space.u[:, : space.r].T @ space.u[:, : space.r]
    floor = 1e-3 * float(np.trace(moment))
    planes = list(combinations(range(space.r), 2)) or [(0, 0)]
    for _ in range(N_ROUNDS):
        start = path[-1]
        for number in rng.permutation(len(planes)):
            turns = path[-1] @ _plane_turns(space.r, planes[number])
            kept = np.einsum("ij,aji->a", moment, turns)
            order = np.argsort(kept)
            better = order[kept[order] < float(np.trace(moment @ path[-1])) - floor]
            further = next((turns[a] for a in better if admits(turns[a])), None)
            if further is not None:
                path = [*path, further]
        if path[-1] is start:
            break
    return path


@cache
def _plane_turns(r: int, plane: tuple[int, int]) -> np.ndarray:
    """Turns and reflections in the plane of two of r directions, shape (2 * N_ANGLES, r, r)."""
    i, j = plane
    turns = np.tile(np.eye(r), (2 * N_ANGLES, 1, 1))
    if i == j:
        turns[:, i, i] = np.repeat([1, -1], N_ANGLES)
        return turns
    angle = np.tile(2 * np.pi * np.arange(N_ANGLES) / N_ANGLES, 2)
    det = np.repeat([1, -1], N_ANGLES)
    turns[:, i, i], turns[:, i, j] = np.cos(angle), np.sin(angle)
    turns[:, j, i], turns[:, j, j] = -det * np.sin(angle), det * np.cos(angle)
    return turns


def _match(space: _Space, rng: np.random.Generator) -> np.ndarray:
    """A turn from matching the clouds: from a random one, nearest neighbours both ways and Procrustes in turn."""
    u, v = space.u[:, : space.r], space.v[:, : space.r]
    # Anchors count as many cells, so that few of them decide.
    weight = len(u) / 10 / max(len(space.anchors.actual), 1)
    tied = weight * space.anchors.translated[:, : space.r].T @ space.anchors.actual[:, : space.r]
    turn = np.linalg.qr(rng.normal(size=(space.r, space.r)))[0]
    for _ in range(N_STEPS):
        distance = np.square(v).sum(axis=1) - 2 * u @ turn @ v.T
        there = distance.argmin(axis=1)
        back = (distance + np.square(u).sum(axis=1)[:, None]).argmin(axis=0)
        left, _, right = np.linalg.svd(u.T @ v[there] + u[back].T @ v + tied)
        turn = left @ right
    return turn


def _draw(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(n)[:SEARCH_CELLS]


def _error(values: np.ndarray) -> float:
    return 1.96 * float(values.std() / np.sqrt(len(values)))
