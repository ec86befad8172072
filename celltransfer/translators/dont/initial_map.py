"""Where transport starts: an affine map that lays source cells into the target's feature space."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import FeatureError
from celltransfer.nn import flows
from celltransfer.pp.transforms import moments
from celltransfer.translators.baselines import anchor_and_condition_map, column_means

STARTS = ("auto", "identity", "regression", "moments")

# Cells from which moments are taken, at most.
MOST_CELLS = 20_000
# Maps that account for a smaller share of the target's spread say nothing: links that cancel, anchors all alike.
NOTHING = 1e-4
# What the order of components counts beside anchors, conditions or links: enough to settle what these leave open.
ORDER = 1e-3


class Placement(NamedTuple):
    """The map x -> x W + b, shapes (d, D) and (D,), and a sentence on where it is from."""

    weight: np.ndarray
    offset: np.ndarray
    reason: str


def place(pair: ModalityPair, start: str) -> Placement:
    """Find the start.

    Parameters
    ----------
    pair
        The cells.
    start
        ``"identity"``: the features are the same. ``"regression"``: the linear map that anchors, means of conditions
        or feature links suggest, as it is; it has less spread than the target wherever it does not know.
        ``"moments"``: a map in the same directions that gives source cells the target's mean and covariance; what no
        anchor, condition or link decides, the order of the principal components does, and their skewness the signs.
        ``"auto"``: the identity where source and target share their features, else regression if there is anything
        to regress on, else moments.

    Raises
    ------
    FeatureError
        The identity between different numbers of features.
    """
    if start == "identity" or (start == "auto" and pair.shared):
        return _identity(pair)
    known = _suggested(pair)
    if known is not None and start != "moments":
        return known
    return _moments(pair, known)


def _identity(pair: ModalityPair) -> Placement:
    d, out = pair.x.shape[1], pair.y.shape[1]
    if d != out:
        raise FeatureError(
            f"start='identity' needs source and target in the same features and got {d} and {out} of them. Use "
            "start='auto', or reduce both to the same components with one recipe."
        )
    return Placement(np.eye(d), np.zeros(out), "Transport starts at the cells themselves, in the features they share.")


def _suggested(pair: ModalityPair) -> Placement | None:
    """The map that anchors, conditions or links suggest; ``None`` without any, or where they suggest no motion."""
    found = _regressed(pair)
    if found is None:
        return None
    spread_x, spread_y = moments(pair.x)[1], moments(pair.y)[1]
    explained = np.linalg.norm(spread_x[:, None] * found.weight)
    return found if explained > NOTHING * np.linalg.norm(spread_y) else None


def _regressed(pair: ModalityPair) -> Placement | None:
    mean_x, mean_y = column_means(pair.x), column_means(pair.y)
    several = len(pair.shared_conditions) > 1
    if pair.n_anchors or several:
        weight, offset = anchor_and_condition_map(pair)
        basis = " and ".join(["anchors"] * bool(pair.n_anchors) + ["means of conditions"] * several)
        return Placement(weight, offset, f"Transport starts at a ridge regression on {basis}.")
    if pair.links is not None:
        weight = dense(pair.links).astype(float)
        return Placement(weight, mean_y - mean_x @ weight, "Transport starts at the map that feature links suggest.")
    return None


def _moments(pair: ModalityPair, known: Placement | None) -> Placement:
    """W = U_x L_x^-1/2 R L_y^1/2 U_y', R the partial isometry nearest to what is known."""
    (mean_x, axes_x, spread_x), (mean_y, axes_y, spread_y) = _components(pair.x), _components(pair.y)
    order = np.eye(len(spread_x), len(spread_y))
    if known is None:
        turn = order
        reason = (
            "Nothing says which source features belong to which target features: transport starts with principal "
            "components matched by their order and skewness, which is a guess. Pass anchors, links=, conditions= or "
            "prior=."
        )
    else:
        agreement = (spread_x[:, None] * (axes_x.T @ known.weight @ axes_y)) / spread_y
        u, _, vt = np.linalg.svd(agreement / np.linalg.norm(agreement) + ORDER * order, full_matrices=False)
        turn = u @ vt
        reason = known.reason.replace("at ", "at the target's mean and covariance, turned by ", 1)
    weight = (axes_x / spread_x) @ turn @ (axes_y * spread_y).T
    return Placement(weight, mean_y - mean_x @ weight, reason)


def _components(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (d,), principal axes (d, d) in falling order with positive skewness, and standard deviations (d,)."""
    n = matrix.shape[0]
    rows = np.sort(np.random.default_rng(0).permutation(n)[:MOST_CELLS])
    cells = dense(matrix[rows])
    mean, covariance = (value.double().numpy() for value in flows.moments(torch.as_tensor(cells)))
    values, axes = np.linalg.eigh(covariance)
    values, axes = values[::-1], axes[:, ::-1]
    skew = (((cells - mean) @ axes) ** 3).sum(axis=0)
    return mean, axes * np.where(skew < 0, -1.0, 1.0), np.sqrt(np.maximum(values, 1e-12 * values[0]))
