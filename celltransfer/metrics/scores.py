"""Scores of a translation against the truth. Row i of the prediction and row i of the truth are the same cell.

Every ``*_per_cell`` function returns one value per cell, which is what a bootstrap resamples; the function without
the suffix is its mean. Distances come in row blocks of at most `BLOCK_BYTES`, so memory does not grow with n squared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from celltransfer.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celltransfer.data.pair import Matrix

Metric = Literal["cosine", "euclidean", "csls", "l1"]
METRICS: tuple[Metric, ...] = ("cosine", "euclidean", "csls", "l1")
BLOCK_BYTES = 2**23
CSLS_NEIGHBOURS = 10
_TILE = 64


class PartnerRanks(NamedTuple):
    """How many candidates lie closer to a query than its true partner, and how many as close, shapes (n,)."""

    closer: np.ndarray
    tied: np.ndarray


class Foscttm(NamedTuple):
    """Both directions of `foscttm` and their mean."""

    overall: float
    source_to_target: float
    target_to_source: float


class FoscttmPerCell(NamedTuple):
    """`Foscttm` of every cell, shapes (n,)."""

    overall: np.ndarray
    source_to_target: np.ndarray
    target_to_source: np.ndarray


def partner_ranks(query: np.ndarray, candidates: np.ndarray, metric: Metric = "cosine") -> PartnerRanks:
    """Count, for each query row, the candidates closer than its partner (the candidate in the same row).

    Parameters
    ----------
    query, candidates
        Matched cells in one space, shape (n, d) both.
    metric
        ``"cosine"``, ``"euclidean"``, ``"l1"``, or ``"csls"``: cosine corrected for hubs (Conneau et al. 2018).
        A row of zeros has cosine 0 with everything.

    Raises
    ------
    InputError
        If the shapes differ or values are missing.
    """
    query, candidates = _paired(query, candidates)
    closer, tied = np.empty((2, len(query)), dtype=np.int64)
    for rows, distance in _distance_blocks(query, candidates, metric):
        own = np.diagonal(distance, offset=rows.start)[:, None]
        closer[rows] = np.count_nonzero(distance < own, axis=1)
        tied[rows] = np.count_nonzero(distance == own, axis=1) - 1
    return PartnerRanks(closer, tied)


def mutual_ranks(
    prediction: np.ndarray, truth: np.ndarray, metric: Metric = "cosine"
) -> tuple[PartnerRanks, PartnerRanks]:
    """`partner_ranks` of both directions, from one pass over the distances.

    Translations querying true cells, then true cells querying translations. Parameters as there.
    """
    prediction, truth = _paired(prediction, truth)
    base: Metric = "cosine" if metric == "csls" else metric
    hubs = (_hubness(prediction, truth), _hubness(truth, prediction)) if metric == "csls" else None
    own = _partner_distances(prediction, truth, base)
    own_forward, own_backward = (own, own) if hubs is None else (own**2 + hubs[0], own**2 + hubs[1])
    forward, backward = np.zeros((2, 2, len(truth)), dtype=np.int64)
    for rows, distance in _distance_blocks(prediction, truth, base):
        np.fill_diagonal(distance[:, rows], own[rows])
        ahead, back = (distance, distance) if hubs is None else _less_hubs(distance, hubs[0], hubs[1][rows])
        forward[:, rows] = _counts(ahead, own_forward[rows, None], 1)
        backward += _counts(back, own_backward, 0)
    return PartnerRanks(forward[0], forward[1] - 1), PartnerRanks(backward[0], backward[1] - 1)


def foscttm(prediction: np.ndarray, truth: np.ndarray, metric: Metric = "cosine") -> float:
    """Fraction of samples closer than the true match: 0 is perfect, chance is 0.5.

    The mean of both query directions in the target space; other cells as close as the true match count half.

    Parameters
    ----------
    prediction, truth
        Translated and true target cells, shape (n, d) both, n >= 2.
    metric
        See `partner_ranks`.

    References
    ----------
    Liu et al. 2019, Jointly embedding multiple single-cell omics measurements, WABI.
    """
    return foscttm_directions(prediction, truth, metric).overall


def foscttm_directions(prediction: np.ndarray, truth: np.ndarray, metric: Metric = "cosine") -> Foscttm:
    """`foscttm` and its two directions: translations querying true cells, and true cells querying translations."""
    return Foscttm(*(float(np.mean(values)) for values in foscttm_per_cell(prediction, truth, metric)))


def foscttm_per_cell(prediction: np.ndarray, truth: np.ndarray, metric: Metric = "cosine") -> FoscttmPerCell:
    """`foscttm` of every cell, shapes (n,): overall and per direction."""
    prediction, truth = _paired(prediction, truth)
    if len(truth) < 2:
        raise InputError("FOSCTTM compares a cell with the other cells and got 1 cell; pass at least 2.")
    forward, backward = (fraction_closer(ranks) for ranks in mutual_ranks(prediction, truth, metric))
    return FoscttmPerCell((forward + backward) / 2, forward, backward)


def fraction_closer(ranks: PartnerRanks) -> np.ndarray:
    """Share of the other cells that lie closer than the partner, ties counting half, shape (n,)."""
    return (ranks.closer + ranks.tied / 2) / (len(ranks.closer) - 1)


def foscttm_within(prediction: np.ndarray, truth: np.ndarray, groups: np.ndarray, metric: Metric = "cosine") -> float:
    """`foscttm` among the cells of the same group only, mean over cells: what is left once the group is known.

    Cells without a group (NaN, ``None``) and groups of one cell have no say; NaN where nothing is left.
    """
    return _mean_known(foscttm_within_per_cell(prediction, truth, groups, metric))


def foscttm_within_per_cell(
    prediction: np.ndarray, truth: np.ndarray, groups: np.ndarray, metric: Metric = "cosine"
) -> np.ndarray:
    """`foscttm_within` of every cell, shape (n,), NaN where it is not defined."""
    prediction, truth = _paired(prediction, truth)
    codes = _codes(groups, len(truth))
    values = np.full(len(truth), np.nan)
    for code in np.unique(codes[codes >= 0]):
        rows = np.flatnonzero(codes == code)
        if len(rows) > 1:
            values[rows] = foscttm_per_cell(prediction[rows], truth[rows], metric).overall
    return values


def knn_accuracy(prediction: np.ndarray, truth: np.ndarray, k: int = 10, metric: Metric = "cosine") -> float:
    """Share of cells whose true partner is among the `k` target cells nearest to their translation; chance is k / n.

    Where target cells are exactly as far as the partner, the expectation over breaking the tie at random counts.
    """
    return float(knn_accuracy_per_cell(prediction, truth, k, metric).mean())


def knn_accuracy_per_cell(
    prediction: np.ndarray, truth: np.ndarray, k: int = 10, metric: Metric = "cosine"
) -> np.ndarray:
    """`knn_accuracy` of every cell, shape (n,), in [0, 1]."""
    return within_nearest(partner_ranks(prediction, truth, metric), k)


def within_nearest(ranks: PartnerRanks, k: int) -> np.ndarray:
    """Probability that the partner is among the `k` nearest, ties broken at random, shape (n,)."""
    _check_k(k)
    return np.clip((k - ranks.closer) / (ranks.tied + 1), 0.0, 1.0)


def knn_accuracy_cmae(prediction: np.ndarray, truth: np.ndarray, k: int = 50, metric: Metric = "l1") -> float:
    """Share of cells whose translation's nearest target cell is among the `k` nearest of the true target cell.

    The variant of Yang et al. 2021 (Nat Commun 12:31): L1 distances, and a cell is its own first neighbour.
    """
    return float(knn_accuracy_cmae_per_cell(prediction, truth, k, metric).mean())


def knn_accuracy_cmae_per_cell(
    prediction: np.ndarray, truth: np.ndarray, k: int = 50, metric: Metric = "l1"
) -> np.ndarray:
    """`knn_accuracy_cmae` of every cell, shape (n,), 0 or 1; ties as in `knn_accuracy`."""
    return within_nearest(cmae_ranks(prediction, truth, metric), k)


def cmae_ranks(prediction: np.ndarray, truth: np.ndarray, metric: Metric = "l1") -> PartnerRanks:
    """How many true cells lie closer to a cell than the one nearest to its translation, and how many as close."""
    prediction, truth = _paired(prediction, truth)
    nearest = np.concatenate([d.argmin(axis=1) for _, d in _distance_blocks(prediction, truth, metric)])
    closer, tied = np.empty((2, len(truth)), dtype=np.int64)
    for rows, distance in _distance_blocks(truth, truth, metric):
        hit = np.take_along_axis(distance, nearest[rows, None], axis=1)
        closer[rows] = np.count_nonzero(distance < hit, axis=1)
        tied[rows] = np.count_nonzero(distance == hit, axis=1) - 1
    return PartnerRanks(closer, tied)


def label_transfer_accuracy(
    prediction: np.ndarray, truth: np.ndarray, labels: np.ndarray, k: int = 5, metric: Metric = "cosine"
) -> float:
    """Share of cells whose label is the most frequent one among the `k` true target cells nearest their translation.

    Cells without a label (NaN, ``None``) neither ask nor vote. NaN where no cell has a label.
    """
    return _mean_known(label_transfer_per_cell(prediction, truth, labels, k, metric))


def label_transfer_per_cell(
    prediction: np.ndarray, truth: np.ndarray, labels: np.ndarray, k: int = 5, metric: Metric = "cosine"
) -> np.ndarray:
    """`label_transfer_accuracy` of every cell, shape (n,), NaN where unlabelled.

    With several labels equally frequent, a cell scores the probability that a random choice among them is right.
    """
    prediction, truth = _paired(prediction, truth)
    _check_k(k)
    codes = _codes(labels, len(truth))
    known = np.flatnonzero(codes >= 0)
    values = np.full(len(truth), np.nan)
    if not len(known):
        return values
    own, k = codes[known], min(k, len(known))
    for rows, distance in _distance_blocks(prediction[known], truth[known], metric):
        voters = own[np.argpartition(distance, k - 1, axis=1)[:, :k]]
        votes = (voters[:, :, None] == voters[:, None, :]).sum(axis=2)
        winners = votes == votes.max(axis=1, keepdims=True)
        # A label with v votes appears v times among the winners, so weight each appearance by 1 / v.
        share = (winners & (voters == own[rows, None])) / votes
        values[known[rows]] = share.sum(axis=1) / (winners / votes).sum(axis=1)
    return values


def correlation_per_feature(
    prediction: Matrix, truth: Matrix, method: Literal["pearson", "spearman"] = "pearson"
) -> np.ndarray:
    """Correlation over cells of every feature, shape (p,); 0 where either side does not vary.

    Parameters
    ----------
    prediction, truth
        Translated and true features on one scale, shape (n, p) both, dense or sparse.
    method
        ``"pearson"`` or ``"spearman"``.
    """
    if method not in ("pearson", "spearman"):
        raise ConfigError(f"method={method!r} is not known; choose 'pearson' or 'spearman'.")
    prediction, truth = _paired(prediction, truth, None)
    out = np.empty(truth.shape[1])
    for columns in blocks(truth.shape[1], 8 * truth.shape[0]):
        a, b = _dense(prediction[:, columns]), _dense(truth[:, columns])
        if method == "spearman":
            a, b = rankdata(a, axis=0), rankdata(b, axis=0)
        out[columns] = _pearson_columns(a, b)
    return out


def correlation_per_cell(
    prediction: Matrix, truth: Matrix, method: Literal["pearson", "spearman"] = "pearson"
) -> np.ndarray:
    """Correlation over features of every cell, shape (n,); 0 where either side does not vary."""
    across, true = (side.T for side in _paired(prediction, truth, None))
    return correlation_per_feature(across, true, method)


def mse(prediction: Matrix, truth: Matrix) -> float:
    """Mean squared error over all entries."""
    return float(mse_per_cell(prediction, truth).mean())


def mse_per_cell(prediction: Matrix, truth: Matrix) -> np.ndarray:
    """Mean squared error over the features of every cell, shape (n,)."""
    prediction, truth = _paired(prediction, truth, None)
    rows = blocks(truth.shape[0], 8 * truth.shape[1])
    return np.concatenate([np.mean((_dense(prediction[b]) - _dense(truth[b])) ** 2, axis=1) for b in rows])


def energy_distance(prediction: np.ndarray, truth: np.ndarray) -> float:
    r"""Energy distance :math:`2E|X-Y| - E|X-X'| - E|Y-Y'|` of the two clouds, as a U-statistic.

    Needs no pairing, and sees what FOSCTTM cannot: translations that are too narrow. Being unbiased, it falls
    around 0 (also below) where both clouds come from one distribution. Rows may differ in number, n and m >= 2.

    References
    ----------
    Székely & Rizzo 2013, Energy statistics, J Stat Plan Inference.
    """
    prediction, truth = _points(prediction, "prediction"), _points(truth, "truth")
    n, m = len(prediction), len(truth)
    if min(n, m) < 2 or prediction.shape[1] != truth.shape[1]:
        raise InputError(
            f"The energy distance got shapes {prediction.shape} and {truth.shape}; expected (>= 2, d) twice."
        )
    between = _sum_distances(prediction, truth) / (n * m)
    within_x = _sum_within(prediction) / (n * (n - 1))
    within_y = _sum_within(truth) / (m * (m - 1))
    return 2 * between - within_x - within_y


def classifier_auc(prediction: np.ndarray, truth: np.ndarray, *, n_folds: int = 5, seed: int = 0) -> float:
    """How well a classifier tells translated from true target cells: 0.5 is indistinguishable, 1 is plain to see.

    Area under the ROC curve of a logistic regression on standardised values and their squares (the squares see
    spread, so that conditional means do not pass for cells), cross-validated; both cells of a pair share a fold.

    Parameters
    ----------
    prediction, truth
        Translated and true target cells, shape (n, d) both, n >= 4.

    References
    ----------
    Lopez-Paz & Oquab 2017, Revisiting classifier two-sample tests, ICLR.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    prediction, truth = _paired(prediction, truth)
    n = len(truth)
    if n < 4:
        raise InputError(f"A cross-validated classifier got {n} cells; pass at least 4.")
    points, answer = np.concatenate([prediction, truth]), np.repeat([1, 0], n)
    fold = np.tile(np.random.default_rng(seed).permutation(n) % min(n_folds, n // 2), 2)
    aucs = []
    for held_out in np.unique(fold):
        train = fold != held_out
        linear = StandardScaler().fit(points[train]).transform(points)
        features = StandardScaler().fit(np.hstack([linear, linear**2])[train]).transform(np.hstack([linear, linear**2]))
        odds = LogisticRegression(max_iter=500).fit(features[train], answer[train]).decision_function(features[~train])
        aucs.append(roc_auc_score(answer[~train], odds))
    return float(np.mean(aucs))


def reference_share(score: float, chance: float, reference: float) -> float:
    """How much of the way from chance to the reference is gone: (score - chance) / (reference - chance).

    NaN where the reference itself does not differ from chance.
    """
    gap = reference - chance
    return float((score - chance) / gap) if abs(gap) > 1e-12 else float("nan")


def _distance_blocks(query: np.ndarray, candidates: np.ndarray, metric: Metric) -> Iterator[tuple[slice, np.ndarray]]:
    """Distances of blocks of query rows to all candidates, (rows, (block, m)).

    Pair by pair rather than as a matrix product: equal rows then have equal distances, and ties are seen as ties.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric={metric!r} is not known; choose one of {', '.join(METRICS)}.")
    angular = metric in ("cosine", "csls")
    hubness = _hubness(query, candidates) if metric == "csls" else None
    if angular:
        query, candidates = _unit(query), _unit(candidates)
    for rows in blocks(len(query), 8 * len(candidates)):
        if angular:
            distance = _angular(query[rows], candidates)
        else:
            distance = cdist(query[rows], candidates, "cityblock" if metric == "l1" else "euclidean")
        yield rows, distance if hubness is None else distance**2 + hubness


def _angular(query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Chord length between unit rows, sqrt(2 - 2 cos); rows of zeros are orthogonal to all."""
    distance = cdist(query, candidates, "euclidean")
    distance[~query.any(axis=1)] = np.sqrt(2)
    distance[:, ~candidates.any(axis=1)] = np.sqrt(2)
    return distance


def _hubness(query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Mean cosine of each candidate to its nearest queries, shape (m,)."""
    k = min(CSLS_NEIGHBOURS, len(query))
    query, candidates = _unit(query), _unit(candidates)
    nearest = [
        np.partition(_angular(candidates[rows], query), k - 1, axis=1)[:, :k]
        for rows in blocks(len(candidates), 8 * len(query))
    ]
    return np.mean(1 - np.concatenate(nearest) ** 2 / 2, axis=1)


def _less_hubs(
    distance: np.ndarray, candidate_hubs: np.ndarray, query_hubs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances corrected for hubs, for rows looking at columns and for columns looking at rows."""
    square = distance**2
    return square + candidate_hubs, square + query_hubs[:, None]


def _partner_distances(prediction: np.ndarray, truth: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of matched rows, shape (n,), to the last bit those of `_distance_blocks`."""
    tiles = (slice(start, start + _TILE) for start in range(0, len(truth), _TILE))
    pairs = (_distance_blocks(prediction[tile], truth[tile], metric) for tile in tiles)
    return np.concatenate([np.diagonal(d, offset=rows.start) for tile in pairs for rows, d in tile])


def _counts(distance: np.ndarray, own: np.ndarray, axis: Literal[0, 1]) -> tuple[np.ndarray, np.ndarray]:
    return np.count_nonzero(distance < own, axis=axis), np.count_nonzero(distance == own, axis=axis)


def _sum_distances(x: np.ndarray, y: np.ndarray) -> float:
    return float(sum(distance.sum() for _, distance in _distance_blocks(x, y, "euclidean")))


def _sum_within(x: np.ndarray) -> float:
    """Sum of the distances of all ordered pairs of rows, each computed once."""
    total = 0.0
    for rows in blocks(len(x), 8 * len(x)):
        distance = cdist(x[rows], x[rows.start :])
        total += 2 * distance.sum() - distance[:, : len(distance)].sum()
    return total


def _pearson_columns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), scale, out=np.zeros(len(scale)), where=varies & (scale > 0))


def blocks(n: int, bytes_per_row: int) -> Iterator[slice]:
    """Slices over n rows, of at most `BLOCK_BYTES` each."""
    size = max(1, BLOCK_BYTES // max(1, bytes_per_row))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _unit(points: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, norm, out=np.zeros_like(points), where=norm > 0)


def _dense(block: Matrix) -> np.ndarray:
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)


def _points(values: Matrix, name: str, dtype: type | None = np.float64) -> Any:
    """Finite values, shape (n, d), as `dtype` (``None``: as they are); sparse stays sparse (CSC, for column blocks)."""
    points: Any = sp.csc_matrix(values) if sp.issparse(values) else np.asarray(values, dtype=dtype)
    if points.ndim != 2 or 0 in points.shape:
        raise InputError(f"The {name} has shape {points.shape}; expected (cells, features), none of them 0.")
    finite = np.isfinite(points.data if sp.issparse(values) else points)
    if not finite.all():
        raise InputError(f"The {name} holds {int((~finite).sum())} NaN or infinite values; a score needs all of them.")
    return points


def _paired(prediction: Matrix, truth: Matrix, dtype: type | None = np.float64) -> tuple[Any, Any]:
    prediction, truth = _points(prediction, "prediction", dtype), _points(truth, "truth", dtype)
    if prediction.shape != truth.shape:
        raise InputError(
            f"The prediction has shape {prediction.shape} and the truth {truth.shape}; row i of both must be one cell, "
            "and their features the same."
        )
    return prediction, truth


def _codes(labels: np.ndarray, n: int) -> np.ndarray:
    """Integer codes of labels, -1 where unknown, shape (n,)."""
    import pandas as pd

    if np.shape(labels) != (n,):
        raise InputError(f"There are labels of shape {np.shape(labels)} for {n} cells; expected ({n},).")
    return np.asarray(pd.factorize(pd.Series(labels))[0])


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k={k} neighbours; expected 1 or more.")


def _mean_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
