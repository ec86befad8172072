"""Regressions on pairs: what the baselines, the controls and the ceiling are made of. Arrays in, a function out.

All map source features, shape (n, d), to target features, shape (n, D), without an intercept. Both come centred by
ALL cells of their modality, so that one pair already gives a direction; where the two modalities hold different
mixtures of cells, their means are no partners, and `best_scaling` finds that the pairs' own means do better.
A regressor that compares settings returns the cross-validated error of its choice, so that `best_scaling` can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Fitted(NamedTuple):
    """A prediction function, shape (n, d) -> (n, D), and the squared error it had on cells left out.

    Where the function is linear: `coefficients`, shape (d, D), and `intercept`, shape (D,) or 0.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    error: float
    coefficients: np.ndarray | None = None
    intercept: np.ndarray | float = 0.0


Regressor = Callable[..., Fitted]

PENALTIES = np.logspace(-2, 5, 29)
_MAX_LEAVE_ONE_OUT = 50


def ridge(x: np.ndarray, y: np.ndarray, centred: bool = False) -> Fitted:
    """Ridge regression, its penalty chosen by leave-one-out in closed form.

    With x = U S V', the leave-one-out residual is (y - H y) / (1 - diag H), H = U diag(s^2 / (s^2 + penalty)) U'.
    If the pairs were `centred` by their own means, those means are left out too, and 1 / n is added to diag H.
    """
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    target = u.T @ y

    def loo_error(penalty: float) -> float:
        shrink = s**2 / (s**2 + penalty)
        leverage = (u**2) @ shrink + (1 / len(x) if centred else 0.0)
        return float(np.mean(((y - u @ (shrink[:, None] * target)) / (1 - leverage)[:, None]) ** 2))

    if len(x) == 1:  # nothing to leave out: the prediction at the pair itself is half its target
        return _linear(vt.T @ ((s / (2 * s**2 + 1e-300))[:, None] * target), float(np.mean(y**2)))
    errors = np.array([loo_error(penalty) for penalty in PENALTIES])
    # The largest of the penalties that rounding alone tells apart.
    best = PENALTIES[np.flatnonzero(errors <= errors.min() * (1 + 1e-9))[-1]]
    return _linear(vt.T @ ((s / (s**2 + best))[:, None] * target), float(errors.min()))


def pls(x: np.ndarray, y: np.ndarray, centred: bool = False, max_components: int = 10) -> Fitted:
    """Partial least squares, its number of components chosen by leave-one-out (ten folds beyond 50 pairs).

    If the pairs were `centred` by their own means, those of every fold are used in it.
    """
    limit = min(max_components, len(x) - (2 if centred else 1), x.shape[1])
    if limit < 1:
        return _linear(_pls_coefficients(x, y, 1)[0], np.inf)
    errors = np.zeros(limit)
    for train, test in _folds(len(x), len(x) if len(x) <= _MAX_LEAVE_ONE_OUT else 10):
        mean_x, mean_y = (v[train].mean(axis=0) if centred else 0.0 for v in (x, y))
        for c, coefficients in enumerate(_pls_coefficients(x[train] - mean_x, y[train] - mean_y, limit)):
            errors[c] += np.sum((y[test] - mean_y - (x[test] - mean_x) @ coefficients) ** 2)
    return _linear(_pls_coefficients(x, y, int(errors.argmin()) + 1)[-1], errors.min() / y.size)


def cca(x: np.ndarray, y: np.ndarray, shrinkage: float = 0.1) -> Fitted:
    """Canonical correlation analysis, read as the regression it implies; the rank is chosen by cross-validation."""
    limit = min(x.shape[1], y.shape[1], 15)
    errors = np.zeros(limit)
    for train, test in _folds(len(x), 5):
        for c, coefficients in enumerate(_cca_coefficients(x[train], y[train], limit, shrinkage)):
            errors[c] += np.sum((y[test] - x[test] @ coefficients) ** 2)
    return _linear(_cca_coefficients(x, y, int(errors.argmin()) + 1, shrinkage)[-1], errors.min() / y.size)


def mlp(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
    """One hidden layer of 64 units, weight decay and early stopping on a tenth of the pairs."""
    from sklearn.neural_network import MLPRegressor

    network = MLPRegressor(
        hidden_layer_sizes=(64,), alpha=1.0, early_stopping=len(x) >= 100, max_iter=1000, tol=1e-3, random_state=seed
    )
    network.fit(x, y)
    return Fitted(lambda new: np.asarray(network.predict(new)).reshape(len(new), -1), np.inf)


def best_scaling(fit: Regressor, x: np.ndarray, y: np.ndarray, scale: np.ndarray, *, own_centre: bool = True) -> Fitted:
    """Fit on features of natural scale, whitened, and halfway, and keep the one with the lowest error.

    A penalty shared by all features makes their scales matter: the natural one trusts leading components more, and
    with a handful of pairs that can halve the error. Where the errors cannot tell (one pair), the natural scale.
    In the same way the centre is chosen: the mean of all cells, or (from three pairs on) that of the pairs.

    Parameters
    ----------
    fit
        `ridge` or `pls`.
    x, y
        Whitened source features, shape (n, d), and targets, shape (n, D).
    scale
        Standard deviation of the features before they were whitened, shape (d,).
    own_centre
        Whether the mean of the pairs may be the centre; not where rows carry weights.
    """
    centres = [(np.zeros(x.shape[1]), np.zeros(y.shape[1]))]
    if own_centre and len(x) >= 3:
        centres.append((x.mean(axis=0), y.mean(axis=0)))
    fits = []
    for power in (1.0, 0.5, 0.0):
        factor = (scale / scale.mean()) ** power
        for own, (centre_x, centre_y) in enumerate(centres):
            fitted = fit((x - centre_x) * factor, y - centre_y, centred=bool(own))
            fits.append((fitted, factor, centre_x, centre_y))
    errors = np.array([entry[0].error for entry in fits])
    # Rounding decides nothing: the first of equals.
    best = np.flatnonzero(errors <= errors.min() * (1 + 1e-9))[0] if np.isfinite(errors).any() else 0
    fitted, factor, centre_x, centre_y = fits[best]
    if fitted.coefficients is None:
        return Fitted(lambda new: fitted.predict((new - centre_x) * factor) + centre_y, fitted.error)
    coefficients = factor[:, None] * fitted.coefficients
    return _linear(coefficients, fitted.error, centre_y - centre_x @ coefficients)


def linear_map(
    fit: Regressor, x: np.ndarray, y: np.ndarray, scale: np.ndarray, *, own_centre: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients, shape (d, D), and intercept, shape (D,), of `fit` in the best scaling and centre.

    Parameters
    ----------
    fit
        `ridge` or `pls`.
    x, y
        Pairs, centred by all cells of their modality, shapes (k, d) and (k, D).
    scale
        Standard deviation of the features over all source cells, shape (d,); features that do not vary get none.
    own_centre
        As in `best_scaling`.
    """
    varies = scale > 1e-12
    weight = np.zeros((x.shape[1], y.shape[1]))
    if not varies.any():
        return weight, np.zeros(y.shape[1])
    own = scale[varies]
    whitened = x[:, varies].astype(np.float64) / own
    fitted = best_scaling(fit, whitened, y.astype(np.float64), own, own_centre=own_centre)
    assert fitted.coefficients is not None
    weight[varies] = fitted.coefficients / own[:, None]
    return weight, np.broadcast_to(fitted.intercept, (y.shape[1],)).astype(np.float64)


def _linear(coefficients: np.ndarray, error: float, intercept: np.ndarray | float = 0.0) -> Fitted:
    return Fitted(lambda new: new @ coefficients + intercept, float(error), coefficients, intercept)


def _pls_coefficients(x: np.ndarray, y: np.ndarray, n_components: int) -> list[np.ndarray]:
    """Coefficients (d, D) of PLS with 1, 2, ... components (fewer where x is used up, then repeated)."""
    residual, weights, loadings, answers, out = x.copy(), [], [], [], []
    for _ in range(n_components):
        left, strength, _ = np.linalg.svd(residual.T @ y, full_matrices=False)
        score = residual @ left[:, 0]
        size = score @ score
        if strength[0] <= 1e-12 or size <= 1e-12:
            break
        weights.append(left[:, 0])
        loadings.append(residual.T @ score / size)
        answers.append(y.T @ score / size)
        residual = residual - np.outer(score, loadings[-1])
        w, p, q = np.array(weights).T, np.array(loadings).T, np.array(answers).T
        out.append(w @ np.linalg.solve(p.T @ w, q.T))
    out = out or [np.zeros((x.shape[1], y.shape[1]))]
    return out + [out[-1]] * (n_components - len(out))


def _cca_coefficients(x: np.ndarray, y: np.ndarray, rank: int, shrinkage: float) -> list[np.ndarray]:
    """Coefficients (d, D) through the 1, 2, ..., `rank` leading canonical pairs."""
    x_white, y_white = _inverse_root(x, shrinkage), _inverse_root(y, shrinkage)
    u, s, vt = np.linalg.svd(x_white @ (x.T @ y / len(x)) @ y_white, full_matrices=False)
    y_colour = np.linalg.inv(y_white)
    return [x_white @ (u[:, :r] * s[:r]) @ vt[:r] @ y_colour for r in range(1, rank + 1)]


def _inverse_root(points: np.ndarray, shrinkage: float) -> np.ndarray:
    """Symmetric inverse square root of the covariance, shrunk towards a multiple of the identity."""
    values, vectors = np.linalg.eigh(points.T @ points / len(points))
    values = (1 - shrinkage) * values + shrinkage * values.mean() + 1e-12
    return (vectors / np.sqrt(values)) @ vectors.T


def _folds(n: int, n_folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of a fixed random partition."""
    fold = np.random.default_rng(0).permutation(n) % min(n_folds, n)
    return ((np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(min(n_folds, n)))
