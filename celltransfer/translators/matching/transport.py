"""Coupling two clouds of cells by optimal transport under a linear map, in batches: the core of `Consensus`.

Arrays in, arrays out. Cells of both sides are scaled and centred (`Frame`), M maps source to target, shape (d, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from celltransfer.data.batches import shared_conditions
from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.translators.holdout import condition_codes

# Components that a side keeps at most.
MOST_COMPONENTS = 64
# Added to variances, as a share of their mean, before scales are taken out.
SHRINKAGE = 0.05
SINKHORN_STEPS = 15
# Cells that the moments of a side are estimated from, at most, and numbers that those cells may hold.
MOMENT_CELLS, MOMENT_VALUES = 20_000, 20_000_000
# Features from which the leading components are approximated, as all would take minutes.
WIDE = 500


@dataclass(frozen=True)
class Frame:
    """Principal components of one modality with a part of their scales taken out.

    Attributes
    ----------
    mean
        Mean cell, shape (p,).
    forward
        From centred features to scaled components, shape (p, d).
    back
        From scaled components to centred features, shape (d, p).
    sd
        Standard deviation of the scaled components, shape (d,).
    """

    mean: np.ndarray
    forward: np.ndarray
    back: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, cells: Matrix, power: float, rng: np.random.Generator) -> Frame:
        """Fit on random cells of a matrix, as many as may be made dense."""
        size = min(MOMENT_CELLS, max(MOMENT_VALUES // cells.shape[1], 2))
        return cls.fit(dense(cells[_some(cells.shape[0], size, rng)]).astype(np.float64), power)

    @classmethod
    def fit(cls, cells: np.ndarray, power: float) -> Frame:
        """Fit on cells, shape (n, p); components are divided by their standard deviation to the `power`."""
        mean = cells.mean(axis=0, dtype=np.float64)
        values, vectors = _components(cells - mean)
        kept = np.argsort(-values)[:MOST_COMPONENTS]
        kept = kept[values[kept] > 1e-9 * max(values.max(), 1e-300)]
        kept = kept if len(kept) else np.array([0])
        values, vectors = np.maximum(values[kept], 1e-12), vectors[:, kept]
        scale = ((1 - SHRINKAGE) * values + SHRINKAGE * values.mean()) ** (power / 2)
        return cls(mean, vectors / scale, (vectors * scale).T, np.sqrt(values) / scale)

    def place(self, cells: np.ndarray) -> np.ndarray:
        """Scaled components of cells, shape (n, p) -> (n, d), float32."""
        return ((cells - self.mean) @ self.forward).astype(np.float32)

    def mean_of(self, cells: Matrix, rows: np.ndarray) -> np.ndarray:
        """Place of the mean of some rows of a matrix, shape (d,)."""
        mean = np.asarray(cells[rows].mean(axis=0, dtype=np.float64)).ravel()
        return self.place(mean[None])[0]

    def restore(self, points: np.ndarray) -> np.ndarray:
        """Features of scaled components, shape (n, d) -> (n, p)."""
        return points @ self.back + self.mean


@dataclass(frozen=True)
class Anchored:
    """Anchor pairs in their frames, shapes (k, d) and (k, D), and the share of the evidence that they are."""

    x: np.ndarray
    y: np.ndarray
    share: float


@dataclass(frozen=True)
class Group:
    """Cells of one condition that are no anchors: rows of either side, their share of a batch, and their means."""

    code: int
    x: np.ndarray
    y: np.ndarray
    share: float
    mean_x: np.ndarray
    mean_y: np.ndarray


@dataclass(frozen=True)
class Clouds:
    """Both modalities in their frames, centred within condition, and the anchors.

    What depends on the condition alone needs no matching: its cells' mean. The rest is matched within conditions.

    Attributes
    ----------
    x, y
        The matrices, unscaled; only what a batch draws is made dense.
    frame_x, frame_y
        Their frames.
    groups
        Cells that may be matched with each other; one group without conditions.
    anchors
        The pairs.
    links
        What feature links say of the map between frames, shape (d, D), of length 1; ``None`` where they say nothing.
    """

    x: Matrix
    y: Matrix
    frame_x: Frame
    frame_y: Frame
    groups: list[Group]
    anchors: Anchored
    links: np.ndarray | None = None

    @classmethod
    def of(cls, pair: ModalityPair, powers: tuple[float, float], share: float, rng: np.random.Generator) -> Clouds:
        """Scale both sides of `pair`; anchors count for `share` of the evidence."""
        frame_x, frame_y = (
            Frame.of(matrix, power, rng) for matrix, power in zip((pair.x, pair.y), powers, strict=True)
        )
        groups = _groups(pair, frame_x, frame_y)
        codes = None if pair.condition_x is None else np.asarray(pair.condition_x)[pair.anchors[:, 0]]
        x, y = frame_x.place(pair.anchor_x), frame_y.place(pair.anchor_y)
        for group in groups if codes is not None else ():
            x[codes == group.code] -= group.mean_x
            y[codes == group.code] -= group.mean_y
        anchors = Anchored(x, y, share if pair.n_anchors else 0.0)
        return cls(pair.x, pair.y, frame_x, frame_y, groups, anchors, _linked(pair, frame_x, frame_y))

    def draw(self, size: int, rng: np.random.Generator) -> list[Batch]:
        """Random cells of every condition, about `size` a side in all."""
        return [self._draw(group, max(round(size * group.share), 2), rng) for group in self.groups]

    def _draw(self, group: Group, size: int, rng: np.random.Generator) -> Batch:
        x, y = (rows[_some(len(rows), size, rng)] for rows in (group.x, group.y))
        return Batch(
            group.share,
            self.frame_x.place(dense(self.x[x])) - group.mean_x,
            self.frame_y.place(dense(self.y[y])) - group.mean_y,
            group.mean_y,
        )


class Batch(NamedTuple):
    """Cells of one condition, of which there is a `share`, in their frames, shapes (n, d) and (m, D).

    Both are centred by the condition's means, and `mean_y` is that of the target: without it, the cosine between a
    translation and a cell would make much of the little that is left.
    """

    share: float
    x: np.ndarray
    y: np.ndarray
    mean_y: np.ndarray

    def plan(self, translated: np.ndarray, epsilon: float) -> np.ndarray:
        """Plan between the translations of the source cells, shape (n, D), and the target cells, shape (n, m)."""
        return plan(translated + self.mean_y, self.y + self.mean_y, epsilon)

    def partners(self, translated: np.ndarray, epsilon: float) -> np.ndarray:
        """The mean target cell that the plan gives every source cell, shape (n, D)."""
        coupled = self.plan(translated, epsilon)
        return np.asarray(coupled @ self.y / coupled.sum(axis=1, keepdims=True))


def match(
    clouds: Clouds,
    start: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    n_iter: int,
    epsilon: tuple[float, float],
    penalty: float,
) -> np.ndarray:
    """Alternate plans under the map and maps under the plan, from `start`, shape (d, D).

    The plan couples random batches by entropic optimal transport, whose cost is 1 - cos(x M, y). The map regresses
    what the plan couples, with the anchors' own covariances mixed in and a ridge `penalty`.

    Parameters
    ----------
    clouds
        The cells.
    start
        First map.
    size
        Cells a side in a batch.
    n_iter
        Rounds.
    epsilon
        Entropy of the plans, from the first to the last round.
    penalty
        Ridge penalty as a share of the mean variance of the source components.
    """
    anchors, k = clouds.anchors, max(len(clouds.anchors.x), 1)
    own_xx, own_xy = (anchors.x.T @ other / k for other in (anchors.x, anchors.y))
    variance = clouds.frame_x.sd**2
    ridge = penalty * variance.mean()
    gram = (1 - anchors.share) * np.diag(variance) + anchors.share * own_xx + ridge * np.eye(len(variance))
    covariance, m = None, start
    for step in np.geomspace(*epsilon, n_iter):
        coupled = sum(
            own.share * own.x.T @ (own.plan(own.x @ m, float(step)) @ own.y) for own in clouds.draw(size, rng)
        )
        new = (1 - anchors.share) * np.asarray(coupled) + anchors.share * own_xy
        covariance = new if covariance is None else (covariance + new) / 2
        m = np.linalg.solve(gram, covariance).astype(np.float32)
    return m


def plan(translated: np.ndarray, y: np.ndarray, epsilon: float) -> np.ndarray:
    """Entropic plan between translated and target cells, cost 1 - cosine, uniform marginals, shape (n, m)."""
    import ot

    cost = cosine_cost(translated, y)
    a, b = (np.full(n, 1 / n, dtype=cost.dtype) for n in cost.shape)
    found = ot.sinkhorn(a, b, cost, epsilon, numItermax=SINKHORN_STEPS, stopThr=0, warn=False)
    return np.asarray(found)


def cosine_cost(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of rows, shape (n, m), float32."""
    return np.asarray(1 - _unit(a) @ _unit(b).T, dtype=np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9), dtype=np.float32)


def _components(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances of principal components and their directions, shapes (c,) and (p, c); all, or the leading ones."""
    n, p = centred.shape
    if p < WIDE:
        values, vectors = np.linalg.eigh(centred.T @ centred / n)
        return values, vectors
    from sklearn.utils.extmath import randomized_svd

    _, lengths, directions = randomized_svd(centred, min(MOST_COMPONENTS, n), n_iter=4, random_state=0)
    return lengths**2 / n, directions.T


def _some(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """At most `size` of n rows, in random order."""
    if n > 20 * size:  # a permutation of all rows would cost more than the batch
        return rng.permutation(np.unique(rng.integers(n, size=size)))
    return rng.permutation(n)[:size]


def _linked(pair: ModalityPair, frame_x: Frame, frame_y: Frame) -> np.ndarray | None:
    if pair.links is None:
        return None
    between = np.asarray(frame_x.back @ pair.links @ frame_y.forward)
    length = float(np.linalg.norm(between))
    return between / length if length > 0 else None


def _groups(pair: ModalityPair, frame_x: Frame, frame_y: Frame) -> list[Group]:
    """Cells by condition, anchors left out unless too few others are left."""
    codes_x, codes_y = condition_codes(pair)
    shared, shares = shared_conditions(codes_x, codes_y)
    found = []
    for code, share in zip(shared, shares, strict=True):
        x, y = np.flatnonzero(codes_x == code), np.flatnonzero(codes_y == code)
        if pair.condition_x is None:
            means = np.zeros(len(frame_x.sd), np.float32), np.zeros(len(frame_y.sd), np.float32)
        else:
            means = frame_x.mean_of(pair.x, x), frame_y.mean_of(pair.y, y)
        own = _free(x, pair.anchors[:, 0]), _free(y, pair.anchors[:, 1])
        found.append(Group(int(code), *own, float(share), *means))
    return found


def _free(rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    free = np.setdiff1d(rows, anchors)
    return free if len(free) >= 2 else rows
