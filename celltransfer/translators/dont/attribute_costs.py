"""Costs from semantics: what is meant to change moves cheaply, what is meant to stay does not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from celltransfer.data.pair import Matrix, dense
from celltransfer.errors import CelltransferWarning, InputError

# Cells that the classifier is fitted to, at most.
MOST_CELLS = 4000
# Strengths of the penalty that are tried (scikit-learn's C), and folds to compare them in.
STRENGTHS = tuple(np.logspace(-3, 0, 7))
FOLDS = 3


def cost_weights_from(features: Matrix, attribute: np.ndarray, *, floor: float = 0.01, seed: int = 0) -> np.ndarray:
    r"""Weights of a transport cost :math:`\sum_i c_i |x_i - y_i|^p` under which an attribute may change.

    A linear classifier with L1 penalty (support vectors, squared hinge) tells the attribute from standardised
    features; :math:`c_i` is `floor` where it uses feature i and 1 elsewhere. The penalty is the strongest whose
    cross-validated accuracy is within a standard error of the best. The attribute should vary on both sides of the
    translation, or at least among the cells given here: what always goes along with it cannot be told from it.

    `floor` is small and not 0, as only a strictly convex cost has a unique optimal map.

    Reference: dynamic optimal neural translation, section 3.1.

    Parameters
    ----------
    features
        Features that transport takes place in, shape (n, d).
    attribute
        Label of every cell, shape (n,): any values, at least two of them; missing ones (NaN, ``None``) are left out,
        and so are values that fewer than 3 cells have.
    floor
        Cost of moving what the classifier uses.
    seed
        Seed of folds and samples.

    Returns
    -------
    numpy.ndarray
        Weights, shape (d,).

    Raises
    ------
    InputError
        Shapes do not fit, `floor` is not in (0, 1], or fewer than two values are in 3 or more cells.

    Warns
    -----
    CelltransferWarning
        No feature tells the attribute, so all weights are 1.
    """
    if not 0 < floor <= 1:
        raise InputError(f"floor={floor!r}; expected a cost above 0 and at most 1.")
    x, codes = _labelled(features, np.asarray(attribute), seed)
    x = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    used = _used(x, codes, seed)
    if not used.any():
        warnings.warn("No feature tells the attribute, so the cost treats all alike.", CelltransferWarning, 2)
    return np.where(used, floor, 1.0)


def _labelled(features: Matrix, attribute: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells that have a label, and its code."""
    import pandas as pd

    if attribute.shape != (features.shape[0],):
        raise InputError(f"The attribute has shape {attribute.shape}; expected ({features.shape[0]},).")
    codes, values = pd.factorize(pd.Series(attribute))
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(codes >= 0))[:MOST_CELLS]
    counts = np.bincount(codes[rows], minlength=len(values))
    rows = rows[counts[codes[rows]] >= FOLDS]
    if (n := len(np.unique(codes[rows]))) < 2:
        raise InputError(
            f"The attribute has {len(values)} values, {n} of them in {FOLDS} or more cells; expected two or more such."
        )
    return dense(features[rows]).astype(float), codes[rows]


def _used(x: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Which features the sparsest classifier uses that is as good as the best, shape (d,)."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = np.array([cross_val_score(_classifier(c), x, codes, cv=folds) for c in STRENGTHS])
    means = scores.mean(axis=1)
    if means.max() <= np.bincount(codes).max() / len(codes):
        return np.zeros(x.shape[1], dtype=bool)
    error = scores[means.argmax()].std(ddof=1) / np.sqrt(FOLDS)
    chosen = STRENGTHS[int(np.flatnonzero(means >= means.max() - error)[0])]
    return np.abs(_classifier(chosen).fit(x, codes).coef_).max(axis=0) > 0


def _classifier(strength: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(penalty="l1", dual=False, C=strength, max_iter=5000, random_state=0)
