"""Baselines that every comparison carries: ridge and PLS on the anchors alone, condition means, chance."""

from __future__ import annotations

import time
import warnings
import zlib
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from sklearn.cross_decomposition import PLSRegression

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConditionError
from celltransfer.train.outcome import FitResult, Status
from celltransfer.translators.base import Arrays, Translator, register

if TYPE_CHECKING:
    from celltransfer.train.loop import Trainer

# Penalties tried, in units of the mean squared norm of the centred anchors.
PENALTIES = np.logspace(-4, 3, 29)


def column_means(matrix: Matrix) -> np.ndarray:
    """Mean per column in float64, shape (p,)."""
    return np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()


def ridge_map(x: np.ndarray, y: np.ndarray, penalty: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Ridge regression with the penalty chosen by exact leave-one-out error.

    .. math:: \min_{W, b} \sum_i \| x_i W + b - y_i \|^2 + \lambda (\|W\|^2 + \|b\|^2)

    The intercept is penalised too: features and targets come centred by the means of all cells, so that b is the
    anchors' deviation from the population, and few anchors shrink to the population mean.

    Parameters
    ----------
    x, y
        Centred pairs, shapes (k, d) and (k, D).
    penalty
        Penalty in units of the mean squared norm of x. ``None`` minimises the leave-one-out error over `PENALTIES`;
        with a single pair there is nothing to leave out, and it is 1.

    Returns
    -------
    W of shape (d, D), b of shape (D,), and the leave-one-out predictions of the k pairs, shape (k, D).
    """
    design = np.hstack([x, np.ones((len(x), 1))]).astype(np.float64)
    u, s, vt = np.linalg.svd(design, full_matrices=False)
    scale = float(np.mean(s**2) * len(s) / len(x)) or 1.0
    projected = u.T @ y
    if penalty is None:
        penalty = 1.0 if len(x) == 1 else min(PENALTIES, key=lambda p: _loo_error(u, s, projected, y, p * scale))
    weights = vt.T @ (projected * (s / (s**2 + penalty * scale))[:, None])
    return weights[:-1], weights[-1], _leave_one_out(u, s, projected, y, penalty * scale)


def _leave_one_out(u: np.ndarray, s: np.ndarray, projected: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    shrink = s**2 / (s**2 + penalty)
    leverage = np.minimum((u**2) @ shrink, 1 - 1e-10)
    return y - (y - u @ (projected * shrink[:, None])) / (1 - leverage)[:, None]


def _loo_error(u: np.ndarray, s: np.ndarray, projected: np.ndarray, y: np.ndarray, penalty: float) -> float:
    return float(np.square(y - _leave_one_out(u, s, projected, y, penalty)).sum())


class _Closed(Translator):
    """A translator fitted in closed form by `_solve`; its arrays are its state."""

    array_names: ClassVar[tuple[str, ...]]

    arrays_: Arrays

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        start = time.perf_counter()
        self.arrays_ = self._solve(pair, seed)
        return FitResult(Status.SOLVED, seconds=time.perf_counter() - start)

    def _solve(self, pair: ModalityPair, seed: int) -> Arrays:
        raise NotImplementedError

    def _state(self) -> Arrays:
        return dict(self.arrays_)

    def _load_state(self, state: Arrays) -> None:
        self.arrays_ = {name: state[name] for name in self.array_names}


class _Linear(_Closed):
    """y = mean_y + (x - mean_x) W + b."""

    array_names = ("weight", "offset")

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        return x @ self.arrays_["weight"] + self.arrays_["offset"]


def centred_anchors(pair: ModalityPair) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Anchor pairs centred by the means of all cells, and those means: x (k, d), y (k, D), (d,), (D,)."""
    mean_x, mean_y = column_means(pair.x), column_means(pair.y)
    return pair.anchor_x - mean_x, pair.anchor_y - mean_y, mean_x, mean_y


def _linear_arrays(weight: np.ndarray, b: np.ndarray, mean_x: np.ndarray, mean_y: np.ndarray) -> Arrays:
    return {"weight": weight.astype(np.float32), "offset": (mean_y + b - mean_x @ weight).astype(np.float32)}


@register
class Ridge(_Linear):
    """Ridge regression on the anchors alone; on all pairs it is the supervised reference.

    Unpaired cells enter through the means only. The penalty minimises the exact leave-one-out error (see `ridge_map`).
    It is the same for all features, so their scales matter: components in their own variance beat whitened ones.

    Parameters
    ----------
    penalty
        Fixed penalty in units of the anchors' mean squared norm, instead of the leave-one-out choice.
    """

    name = "ridge"
    min_anchors = 1

    def __init__(self, *, penalty: float | None = None) -> None:
        self.penalty = penalty

    def _solve(self, pair: ModalityPair, seed: int) -> Arrays:
        x, y, mean_x, mean_y = centred_anchors(pair)
        weight, b, _ = ridge_map(x, y, self.penalty)
        return _linear_arrays(weight, b, mean_x, mean_y)


@register
class Pls(_Linear):
    """Partial least squares on the anchors alone.

    Parameters
    ----------
    n_components
        Number of components; ``None`` chooses it by cross-validation over the anchors (leave-one-out up to 20 anchors,
        10 folds beyond), from 1 to `max_components`.
    max_components
        Most components tried.
    """

    name = "pls"
    min_anchors = 3

    def __init__(self, *, n_components: int | None = None, max_components: int = 15) -> None:
        self.n_components, self.max_components = n_components, max_components

    def _solve(self, pair: ModalityPair, seed: int) -> Arrays:
        x, y, mean_x, mean_y = centred_anchors(pair)
        n_components = self.n_components or self._choose(x, y, seed)
        weight, b = _pls_map(x, y, n_components)
        return _linear_arrays(weight, b, mean_x, mean_y)

    def _choose(self, x: np.ndarray, y: np.ndarray, seed: int) -> int:
        k = len(x)
        folds = np.array_split(np.random.default_rng(seed).permutation(k), k if k <= 20 else 10)
        largest = min(self.max_components, x.shape[1], k - max(len(fold) for fold in folds) - 1)
        return 1 + int(np.argmin([_pls_error(x, y, n, folds) for n in range(1, max(largest, 1) + 1)]))


def _pls_map(x: np.ndarray, y: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():  # scikit-learn warns where the residual is used up, which is no news here
        warnings.simplefilter("ignore")
        model = PLSRegression(n_components, scale=False).fit(x, y)
    weight = np.asarray(model.coef_).T
    return weight, y.mean(axis=0) - x.mean(axis=0) @ weight


def _pls_error(x: np.ndarray, y: np.ndarray, n_components: int, folds: list[np.ndarray]) -> float:
    error = 0.0
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(x)), fold)
        weight, b = _pls_map(x[rest], y[rest], n_components)
        error += float(np.square(x[fold] @ weight + b - y[fold]).sum())
    return error


@register
class ConditionMean(_Closed):
    """The mean target cell of each source cell's condition; without conditions the mean of all."""

    name = "condition_mean"
    array_names = ("codes", "means", "overall", "grouped")
    uses_conditions = True

    def _solve(self, pair: ModalityPair, seed: int) -> Arrays:
        codes = np.zeros(pair.n_target, np.int64) if pair.condition_y is None else np.asarray(pair.condition_y)
        known = np.unique(codes)
        means = np.stack([column_means(pair.y[codes == code]) for code in known])
        grouped = np.array(pair.condition_y is not None)
        return {"codes": known, "means": means, "overall": column_means(pair.y), "grouped": grouped}

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        state = self.arrays_
        if not state["grouped"]:
            return np.tile(state["overall"], (len(x), 1))
        if condition is None:
            raise ConditionError("This translator was fitted with conditions; pass the cells' condition codes.")
        at = np.searchsorted(state["codes"], condition).clip(max=len(state["codes"]) - 1)
        known = state["codes"][at] == condition
        return np.where(known[:, None], state["means"][at], state["overall"])


@register
class Chance(_Closed):
    """A random target cell for each source cell; the same cell gets the same answer every time.

    Parameters
    ----------
    max_cells
        Target cells kept to draw from.
    """

    name = "chance"
    array_names = ("cells",)

    def __init__(self, *, max_cells: int = 2000) -> None:
        self.max_cells = max_cells

    def _solve(self, pair: ModalityPair, seed: int) -> Arrays:
        rows = np.random.default_rng(seed).permutation(pair.n_target)[: self.max_cells]
        return {"cells": dense(pair.y[rows])}

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        # The draw hangs on the cell's own features, so it does not depend on block size or on the order of cells.
        cells = self.arrays_["cells"]
        drawn = [zlib.crc32(np.ascontiguousarray(row).tobytes()) % len(cells) for row in x]
        return cells[drawn]
