"""Controls: what a score is worth is known only beside them. Arrays only; predictions are in the scoring space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from celltransfer.metrics.scores import blocks, foscttm
from celltransfer.translators.regression import Fitted, best_scaling, cca, mlp, pls, ridge

if TYPE_CHECKING:
    from collections.abc import Callable

_NEIGHBOURS = 20
# The regression of the ceiling is chosen by FOSCTTM, quadratic in the number of cells, on at most so many.
_MAX_CHOOSING = 3000
# One seed serves many draws: a tag for each keeps them unrelated.
_CHANCE, _SHUFFLE, _ORACLE = 11, 12, 13
# Whitened features (n, d), scoring-space targets (n, D) and the features' natural scale (d,) -> fitted regression.
_REGRESSIONS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Fitted]] = {
    "ridge": lambda x, y, scale: best_scaling(ridge, x, y, scale),
    "pls": lambda x, y, scale: best_scaling(pls, x, y, scale),
    "cca": lambda x, y, scale: cca(x, y),
    "mlp": lambda x, y, scale: mlp(x, y),
}


@dataclass(frozen=True, eq=False)
class ControlData:
    """What the controls may look at; the scorer prepares it with its own transforms, never with a model's.

    Attributes
    ----------
    x, y
        Source and target cells of the fitting data, shapes (n_source, d) and (n_target, D): whitened source
        components, and coordinates in the scoring space.
    anchors
        Row pairs (i, j) of `x` and `y`, shape (k, 2).
    x_eval
        Source cells to translate, shape (n, d).
    x_scale
        Standard deviation of the source components before whitening, shape (d,).
    depth_x, depth_y, depth_eval
        Library sizes of the cells in `x`, `y` and `x_eval`; ``None`` where values are no counts.
    pairs_x, pairs_y
        All training pairs, shapes (N, d) and (N, D). For the ceiling only.
    eval_pairs
        Where the evaluation cells are training cells (transductive): their rows among the pairs, shape (n,).
    condition_y, condition_eval
        Conditions known for every cell, or ``None``.
    labels_x, labels_y, labels_eval
        Cell labels with ``None`` or NaN where unknown, or ``None``. For the label controls only.
    """

    x: np.ndarray
    y: np.ndarray
    anchors: np.ndarray
    x_eval: np.ndarray
    x_scale: np.ndarray
    depth_x: np.ndarray | None
    depth_y: np.ndarray | None
    depth_eval: np.ndarray | None
    pairs_x: np.ndarray
    pairs_y: np.ndarray
    eval_pairs: np.ndarray | None = None
    condition_y: np.ndarray | None = None
    condition_eval: np.ndarray | None = None
    labels_x: np.ndarray | None = None
    labels_y: np.ndarray | None = None
    labels_eval: np.ndarray | None = None

    @property
    def anchor_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of the anchors, shapes (k, d) and (k, D)."""
        return self.x[self.anchors[:, 0]], self.y[self.anchors[:, 1]]


def chance(data: ControlData, seed: int = 0) -> np.ndarray:
    """A random target cell for every cell."""
    return data.y[np.random.default_rng([seed, _CHANCE]).integers(len(data.y), size=len(data.x_eval))]


def depth(data: ControlData, seed: int = 0, *, sign: int = 1) -> np.ndarray | None:
    """The target cells at the same rank of library size: no biology at all. ``None`` where there are no counts.

    Averages the 20 target cells around that rank. ``sign=-1`` matches deep source cells to shallow target cells.
    """
    if data.depth_x is None or data.depth_y is None or data.depth_eval is None:
        return None
    order = np.argsort(data.depth_y, kind="stable")
    window = min(_NEIGHBOURS, len(order))
    rank = np.searchsorted(np.sort(data.depth_x), data.depth_eval) / len(data.depth_x)
    centre = (rank if sign > 0 else 1 - rank) * len(order)
    start = np.clip(centre - window / 2, 0, len(order) - window).astype(int)
    return data.y[order[start[:, None] + np.arange(window)]].mean(axis=1)


def condition_mean(data: ControlData, seed: int = 0) -> np.ndarray | None:
    """The mean target cell of the cell's condition; ``None`` where no conditions are known."""
    if data.condition_y is None or data.condition_eval is None:
        return None
    means = np.zeros((len(data.x_eval), data.y.shape[1]))
    for value in _shared(data.condition_y, data.condition_eval):
        means[data.condition_eval == value] = data.y[data.condition_y == value].mean(axis=0)
    return means


def ridge_on_anchors(data: ControlData, seed: int = 0) -> np.ndarray | None:
    """Ridge regression on the anchors; ``None`` without anchors."""
    return _on_anchors("ridge", data)


def pls_on_anchors(data: ControlData, seed: int = 0) -> np.ndarray | None:
    """Partial least squares on the anchors; ``None`` without anchors."""
    return _on_anchors("pls", data)


def shuffled_anchors(data: ControlData, seed: int = 0) -> np.ndarray | None:
    """Ridge regression on anchors paired at random; ``None`` with fewer than two anchors."""
    if len(data.anchors) < 2:
        return None
    x, y = data.anchor_pairs
    shuffled = np.random.default_rng([seed, _SHUFFLE]).permutation(y)
    return _REGRESSIONS["ridge"](x, shuffled, data.x_scale).predict(data.x_eval)


def labels_only(data: ControlData, seed: int = 0) -> np.ndarray | None:
    """Match cells by class probabilities learned in each modality on its own, without any pair.

    The mean of the 20 target cells whose probabilities are nearest. ``None`` where there are no labels.
    """
    if data.labels_x is None or data.labels_y is None:
        return None
    classes = _shared(data.labels_x, data.labels_y)
    if len(classes) < 2:
        return None
    of_source = _class_probabilities(data.x, data.labels_x, classes, data.x_eval)
    of_target = _class_probabilities(data.y, data.labels_y, classes, data.y)
    k = min(_NEIGHBOURS, len(data.y))
    out = np.empty((len(of_source), data.y.shape[1]))
    for rows in blocks(len(of_source), 8 * len(of_target)):
        nearest = np.sort(np.argpartition(cdist(of_source[rows], of_target), k - 1, axis=1)[:, :k])
        out[rows] = data.y[nearest].mean(axis=1)
    return out


def label_oracle(data: ControlData, seed: int = 0) -> np.ndarray | None:
    """A random target cell of the true label: as good as labels can be. ``None`` where no label is on both sides."""
    if data.labels_y is None or data.labels_eval is None:
        return None
    classes = _shared(data.labels_y, data.labels_eval)
    if not classes:
        return None
    rng = np.random.default_rng([seed, _ORACLE])
    out = chance(data, seed)
    for value in classes:
        cells = np.flatnonzero(data.labels_eval == value)
        out[cells] = data.y[rng.choice(np.flatnonzero(data.labels_y == value), size=len(cells))]
    return out


def reference(data: ControlData, seed: int = 0) -> np.ndarray:
    """The ceiling: the best of ridge, PLS, CCA and a small network on ALL training pairs.

    The best is the one with the lowest FOSCTTM in 3-fold cross-validation within the training pairs. Evaluation
    cells that are training cells get their held-out prediction.
    """
    held_out = {name: _held_out(name, data) for name in _REGRESSIONS}
    n = len(data.pairs_y)
    some = np.arange(n) if n <= _MAX_CHOOSING else np.random.default_rng(0).choice(n, _MAX_CHOOSING, replace=False)
    best = min(held_out, key=lambda name: foscttm(held_out[name][some], data.pairs_y[some]))
    if data.eval_pairs is not None:
        return held_out[best][data.eval_pairs]
    return _REGRESSIONS[best](data.pairs_x, data.pairs_y, data.x_scale).predict(data.x_eval)


CONTROLS: dict[str, Callable[[ControlData, int], np.ndarray | None]] = {
    "chance": chance,
    "depth": depth,
    "depth_reversed": lambda data, seed: depth(data, seed, sign=-1),
    "condition_mean": condition_mean,
    "shuffled_anchors": shuffled_anchors,
    "labels_only": labels_only,
    "label_oracle": label_oracle,
    "ridge": ridge_on_anchors,
    "pls": pls_on_anchors,
    "reference": reference,
}


def without_depth(points: np.ndarray, *depths: np.ndarray) -> np.ndarray:
    """Residuals of `points`, shape (n, d), after regression on smooth functions of the library sizes, shapes (n,).

    Ranks, and their squares and cubes: depth acts on normalised values in curves, and a straight line leaves most
    of what the depth control exploits.
    """
    ranks = [2 * (rankdata(values) - 0.5) / len(values) - 1 for values in depths]
    design = np.column_stack([np.ones(len(points)), *(r**power for r in ranks for power in (1, 2, 3))])
    return points - design @ np.linalg.lstsq(design, points, rcond=None)[0]


def _on_anchors(name: str, data: ControlData) -> np.ndarray | None:
    if not len(data.anchors):
        return None
    return _REGRESSIONS[name](*data.anchor_pairs, data.x_scale).predict(data.x_eval)


def _held_out(name: str, data: ControlData, n_folds: int = 3) -> np.ndarray:
    """Cross-validated predictions for all training pairs, shape (N, D)."""
    x, y = data.pairs_x, data.pairs_y
    fold = np.random.default_rng(0).permutation(len(x)) % n_folds
    out = np.empty_like(y)
    for held_out in range(n_folds):
        train = fold != held_out
        out[~train] = _REGRESSIONS[name](x[train], y[train], data.x_scale).predict(x[~train])
    return out


def _shared(a: np.ndarray, b: np.ndarray) -> list[Any]:
    """Values that occur in both and are not missing, sorted as text."""
    known = set(pd.Series(b, dtype=object).dropna())
    return sorted((value for value in pd.Series(a, dtype=object).dropna().unique() if value in known), key=str)


def _class_probabilities(x: np.ndarray, labels: np.ndarray, classes: list[Any], new: np.ndarray) -> np.ndarray:
    """Probabilities of `classes` at `new`, learned on the rows of `x` that have one of them."""
    from sklearn.linear_model import LogisticRegression

    usable = pd.Series(labels, dtype=object).isin(classes).to_numpy()
    model = LogisticRegression(C=0.1, max_iter=300).fit(x[usable], labels[usable].astype(str))
    return np.asarray(model.predict_proba(new))
