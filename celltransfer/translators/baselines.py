"""Baselines that every comparison carries: ridge and PLS on the anchors alone, condition means, chance."""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.train.outcome import FitResult, Status
from celltransfer.translators.base import Arrays, Translator, register
from celltransfer.translators.regression import Fitted, Regressor, linear_map, pls, ridge

if TYPE_CHECKING:
    from celltransfer.train.loop import Trainer


def column_means(matrix: Any) -> np.ndarray:
    """Mean per column in float64, shape (p,)."""
    return np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()


def column_sds(matrix: Matrix) -> np.ndarray:
    """Standard deviation per column in float64, shape (p,)."""
    squares = matrix.multiply(matrix) if sp.issparse(matrix) else np.square(matrix, dtype=np.float64)
    return np.sqrt(np.maximum(column_means(squares) - column_means(matrix) ** 2, 0.0))


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
        return {name: array.copy() for name, array in self.arrays_.items()}

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


def anchor_map(fit: Regressor, pair: ModalityPair) -> tuple[np.ndarray, np.ndarray]:
    """Linear map that `fit` learns from the anchors: coefficients (d, D) and offset (D,).

    Unpaired cells give the scales of the features and, unless left-out anchors say otherwise, the means.
    """
    x, y, mean_x, mean_y = centred_anchors(pair)
    weight, intercept = linear_map(fit, x, y, column_sds(pair.x))
    return weight, mean_y + intercept - mean_x @ weight


def anchor_and_condition_map(pair: ModalityPair) -> tuple[np.ndarray, np.ndarray]:
    """Ridge on the anchors and, where conditions are known, on the means of the conditions: (d, D) and (D,).

    The mean source cell and the mean target cell of a condition are partners that need no pairing. As means of many
    cells they are much less noisy than an anchor, and weigh as much: 1 / (1 / n_x + 1 / n_y) anchors. The centre is
    the mean over conditions, so that their shares may differ between the modalities.
    """
    shared = several_conditions(pair)
    if not shared:
        return anchor_map(ridge, pair)
    sides = ((pair.x, pair.condition_x), (pair.y, pair.condition_y))
    rows = [[np.flatnonzero(codes == code) for code in shared] for _, codes in sides]
    means = [np.stack([column_means(m[r]) for r in own]) for (m, _), own in zip(sides, rows, strict=True)]
    weight = np.sqrt([1 / (1 / len(a) + 1 / len(b)) for a, b in zip(*rows, strict=True)])[:, None]
    (centre_x, centre_y) = (own.mean(axis=0) for own in means)
    x = np.vstack([pair.anchor_x - centre_x, weight * (means[0] - centre_x)])
    y = np.vstack([pair.anchor_y - centre_y, weight * (means[1] - centre_y)])
    coefficients, _ = linear_map(ridge, x, y, column_sds(pair.x), own_centre=False)
    return coefficients, centre_y - centre_x @ coefficients


def several_conditions(pair: ModalityPair) -> list[int]:
    """Codes of the conditions that both modalities have; none where there is only one to tell apart."""
    shared = pair.shared_conditions
    return [int(code) for code in shared] if len(shared) > 1 else []


class _OnAnchors(_Linear):
    """A linear map learned from the anchors alone."""

    min_anchors = 1

    @staticmethod
    def regressor(x: np.ndarray, y: np.ndarray) -> Fitted:
        """The regression, on centred pairs."""
        raise NotImplementedError

    def _solve(self, pair: ModalityPair, seed: int) -> Arrays:
        weight, offset = anchor_map(self.regressor, pair)
        return {"weight": weight.astype(np.float32), "offset": offset.astype(np.float32)}


@register
class Ridge(_OnAnchors):
    """Ridge regression on the anchors alone; on all pairs it is a supervised reference.

    Penalty and scaling of the features (natural, whitened, halfway) minimise the exact leave-one-out error.
    """

    name = "ridge"
    regressor = staticmethod(ridge)


@register
class Pls(_OnAnchors):
    """Partial least squares on the anchors alone.

    The number of components (up to 10) and the scaling of the features are chosen by cross-validation.
    """

    name = "pls"
    regressor = staticmethod(pls)


@register
class ConditionMean(_Closed):
    """The mean target cell of each source cell's condition; without conditions the mean of all."""

    name = "condition_mean"
    array_names = ("codes", "means", "overall", "grouped")
    uses_conditions = True
    needs_condition = True

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
        assert condition is not None
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
