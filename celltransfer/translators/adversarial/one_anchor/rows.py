"""Sparse rows that covariances and one anchor leave: maps of one or two entries an output, found without descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from celltransfer.translators.adversarial.one_anchor.cloud import Cloud

# Partial maps that are followed, and maps that are returned.
BEAM, KEPT = 8000, 48
# Squared sampling errors by which a row may miss the anchor, and what two rows may cost at most.
MOST_MISS, MOST_COST = 16.0, 100.0
# Quantiles that laws are compared by, and cells they are taken from.
QUANTILES, LAW_CELLS = (np.arange(32) + 0.5) / 32, 1000
# Entries up to here are none.
NO_ENTRY = 0.02
# The most variance that a row's direction is given where anchor and covariance hardly meet.
MOST_VARIANCE = 0.1


@dataclass(frozen=True, eq=False)
class _Rows:
    """Candidates for one output: weights (c, d), what each costs by itself, and the variance of its direction."""

    weights: np.ndarray
    cost: np.ndarray
    variance: np.ndarray


def sparse_rows(source: Cloud, target: Cloud, noise: float = 0.0) -> np.ndarray:
    """Maps whose rows have one or two entries, the most likely first, shape (maps, D, d); none if there is none.

    A row w of a standardised map has w C w' = 1, with the source's correlations C, and takes the anchor to its
    partner, w a = b. With two entries that leaves two rows for each pair of features. Which rows go together the
    target's correlations tell, w_i C w_j' = C'_ij: rows are put together one by one, keeping the best sets.

    Parameters
    ----------
    source, target
        The clouds, with one anchor or more.
    noise
        Standard deviation of the anchors' coordinates, beside their sampling error.
    """
    candidates = [_candidates(source, target, output, noise) for output in range(target.cells.shape[1])]
    if min(len(rows.weights) for rows in candidates) == 0:
        return np.empty((0, target.cells.shape[1], source.cells.shape[1]))
    return _together(candidates, source, target)


def anchor_variance(points: np.ndarray, n: int, noise: float = 0.0) -> np.ndarray:
    """Variance of standardised coordinates of single cells where means and deviations are from n cells."""
    return (1 + points**2 / 4) / n + noise**2


def _candidates(source: Cloud, target: Cloud, output: int, noise: float) -> _Rows:
    n = min(len(source.cells), len(target.cells))
    a, b = source.anchors, target.anchors[:, output]
    spread_a, spread_b = anchor_variance(a, n, noise), anchor_variance(b, n, noise)
    one = np.vstack([np.eye(a.shape[1]), -np.eye(a.shape[1])])
    weights, variance = _pairs(source.correlation, a[0], b[0], spread_a[0], float(spread_b[0]))
    weights, variance = np.vstack([one, weights]), np.concatenate([np.zeros(len(one)), variance])
    miss = np.zeros(len(weights))
    for at, partner, spread, own in zip(a, b, spread_a, spread_b, strict=True):
        # Of a pair of features the direction was made to meet the first anchor: what is left is what cannot.
        miss += (weights @ at - partner) ** 2 / (weights**2 @ spread + own)
    near = miss < MOST_MISS * len(a)
    weights, variance, miss = weights[near], variance[near], miss[near]
    law = np.quantile(target.cells[:, output], QUANTILES)[:, None]
    laws = np.quantile(source.cells[:LAW_CELLS] @ weights.T, QUANTILES, axis=0)
    miss = miss + ((laws - law) ** 2).mean(axis=0) / (2 / min(len(source.cells), LAW_CELLS) + variance)
    return _Rows(weights, miss + np.log(n) * (np.abs(weights) > NO_ENTRY).sum(axis=1), variance)


def _pairs(
    correlation: np.ndarray, a: np.ndarray, b: float, spread_a: np.ndarray, spread_b: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows with two entries of unit variance that take `a` to `b`, or as near as they come, and their variance."""
    i, j = np.triu_indices(len(a), 1)
    r = correlation[i, j]
    left = np.sqrt(np.maximum(1 - r**2, 1e-6))
    first, second = a[i], (a[j] - r * a[i]) / left
    length = np.sqrt(first**2 + second**2) + 1e-9
    cosine = np.clip(b / length, -1, 1)
    sine = np.sqrt(1 - cosine**2)
    spread = (spread_a[i] + spread_a[j] + spread_b) / length**2
    variance = np.minimum(spread / np.maximum(sine**2, np.sqrt(spread)), MOST_VARIANCE)
    rows = []
    for sign in (1, -1):
        q = (cosine * second + sign * sine * first) / length / left
        row = np.zeros((len(i), len(a)))
        row[np.arange(len(i)), i] = (cosine * first - sign * sine * second) / length - r * q
        row[np.arange(len(i)), j] = q
        rows.append(row)
    return np.vstack(rows), np.tile(variance, 2)


def _together(candidates: list[_Rows], source: Cloud, target: Cloud) -> np.ndarray:
    """The best sets of one candidate for every output, by a beam."""
    n, wanted = min(len(source.cells), len(target.cells)), target.correlation
    weights = np.vstack([rows.weights for rows in candidates])
    cost, variance = (np.concatenate([getattr(rows, name) for rows in candidates]) for name in ("cost", "variance"))
    sizes = [len(rows.weights) for rows in candidates]
    output, start = np.repeat(np.arange(len(candidates)), sizes), np.cumsum([0, *sizes])
    hoped = wanted[np.ix_(output, output)]
    misses = (weights @ source.correlation @ weights.T - hoped) ** 2
    between = np.minimum(misses / (2 * (1 + hoped**2) / n + variance[:, None] + variance), MOST_COST)
    sets, total, order = np.empty((1, 0), dtype=int), np.zeros(1), _order(sizes, wanted)
    for row in order:
        own = np.arange(start[row], start[row + 1])
        added = total[:, None] + cost[own]
        for column in sets.T:
            added = added + between[column][:, own]
        best = np.argpartition(added, BEAM, axis=None)[:BEAM] if added.size > BEAM else np.arange(added.size)
        before, new = np.unravel_index(best, added.shape)
        sets, total = np.column_stack([sets[before], own[new]]), added[before, new]
    best = np.argsort(total, kind="stable")[:KEPT]
    return np.asarray(weights[sets[best][:, np.argsort(order)]])


def _order(sizes: list[int], correlation: np.ndarray) -> list[int]:
    """Outputs with few candidates first, then those that depend most on the ones before: wrong sets show early."""
    order = [int(np.argmin(sizes))]
    while len(order) < len(sizes):
        bound = np.abs(correlation[:, order]).sum(axis=1)
        bound[order] = -1
        order.append(int(bound.argmax()))
    return order
