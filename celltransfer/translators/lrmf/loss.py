"""The log-likelihood-ratio objective, and the affine map that minimises it for the Gaussian family.

References
----------
Usman et al. 2020, Log-likelihood ratio minimizing flows: towards robust and quantifiable neural distribution
alignment, NeurIPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from celltransfer.nn.flows import Density, Invertible

# Weight of the map that moves cells least beside the anchors, which it only complements.
LEAST_MOTION = 0.01


def likelihood_ratio(transform: Invertible, shared: Density, x: Tensor, y: Tensor) -> Tensor:
    r"""Equation 3 without its constant c(A, B).

    .. math:: -E \log|\det \partial T / \partial x| - E \log P(T(x); \theta_S) - E \log P(y; \theta_S)

    Parameters
    ----------
    transform
        Invertible T, from `celltransfer.nn.flows.transform`.
    shared
        The density P with parameters theta_S, from `celltransfer.nn.flows.density`.
    x, y
        Source and target cells in the target's features, shapes (n, d) and (m, d).
    """
    moved, log_det = transform(x)
    return -(log_det.mean() + shared.log_prob(moved).mean() + shared.log_prob(y).mean())


def shared_pull(shared: Density, target: Density, moved: Tensor) -> float:
    r"""How hard the shared density pulls translated cells as a whole, against how hard the target's own does.

    .. math:: |E \nabla \log P(T(x); \theta_S)| \;/\; |E \nabla \log P(T(x); \theta_B)|

    It is near 0 where the shared density has settled as two bubbles, one on either set, so that the gradient of T
    vanishes although the sets lie apart (example 2.2).
    """
    pulls = [_mean_gradient(density, moved) for density in (shared, target)]
    return pulls[0] / max(pulls[1], 1e-12)


def moment_map(
    mean_x: np.ndarray,
    covariance_x: np.ndarray,
    mean_y: np.ndarray,
    covariance_y: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The affine map x -> W x + b that gives x the mean and covariance of y: the optimum of the Gaussian family.

    Moments leave a rotation R open, W = S_y^1/2 R S_x^-1/2. Without pairs it is the one that moves cells least, which
    makes W = S_x^-1/2 (S_x^1/2 S_y S_x^1/2)^1/2 S_x^-1/2, symmetric and positive definite; in one dimension
    W = sd_y / sd_x (example 2.1). With pairs it is the rotation that brings them together, by orthogonal Procrustes
    in the features' own units, where the least motion decides only what the pairs leave open.

    Parameters
    ----------
    mean_x, mean_y
        Shape (d,).
    covariance_x, covariance_y
        Shape (d, d), positive definite.
    pairs
        Source and target cells that are the same, shapes (k, d) both; ``None`` or empty: none.

    Returns
    -------
    W, b
        Shapes (d, d) and (d,).
    """
    root_x, root_y, inverse_x = _power(covariance_x, 0.5), _power(covariance_y, 0.5), _power(covariance_x, -0.5)
    agreement = _unit(root_y @ root_x)
    if pairs is not None and len(pairs[0]):
        agreement = _unit((pairs[1] - mean_y).T @ (pairs[0] - mean_x)) + LEAST_MOTION * agreement
    u, _, vt = np.linalg.svd(agreement)
    w = root_y @ (u @ vt) @ inverse_x
    return w, mean_y - w @ mean_x


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-12 * values.max()) ** exponent) @ vectors.T


def _unit(matrix: np.ndarray) -> np.ndarray:
    return matrix / max(float(np.linalg.norm(matrix)), 1e-300)


def _mean_gradient(density: Density, cells: Tensor) -> float:
    """Length of the mean gradient of the log density at cells."""
    at = cells.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(density.log_prob(at).mean(), at)
    return float(gradient.sum(0).norm())
