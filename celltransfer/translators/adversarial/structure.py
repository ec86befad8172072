r"""Other conditions on a translator's Jacobian that, like sparsity, leave few maps to choose from.

Each takes the place of E||J_f(x)||_1 / D in the objective. They need the full Jacobian, min(d, D) passes through `f`,
and a determinant per point: affordable up to about d = 64, in latents, and not in thousands of features. Both are
means per dimension, 0 at best, in float32 or better, and indifferent to the scale of columns (`orthogonality`) or of
rows (`diverse_influence`), so that no map lowers them by shrinking. As in `celltransfer.losses.jacobian`, gradients
reach `x` too where it carries one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celltransfer.errors import ConfigError
from celltransfer.losses.jacobian import Map, jacobian

# Added to the eigenvalues of matrices with mean eigenvalue 1. A start with few anchors has a singular Jacobian: without
# a floor its volume is zero, and the gradient infinite.
FLOOR = 1e-6


def orthogonality(f: Map, x: Tensor, *, chunk: int | None = None) -> Tensor:
    r"""Independent mechanisms: how far the columns of J_f are from orthogonal; 0 if they are (Gresele et al. 2021).

    .. math::
        D = d: \; \frac1d E \Big[ \sum_j \log \|J_{:j}\| - \log |\det J| \Big] \qquad
        D > d: \; \frac1{d (d - 1)} E \sum_{i \ne j} \cos^2(J_{:i}, J_{:j})

    Square Jacobians: nats per column, at least 0 by Hadamard's inequality, and up to log(1 / FLOOR) / 2 where J is
    singular. Taller ones: mean squared cosine between columns, 0 to 1. With D < d columns cannot be orthogonal, and
    a ConfigError says so. The value is that of J with its columns scaled or reordered.

    Parameters
    ----------
    f, x, chunk
        As in `celltransfer.losses.jacobian.jacobian`.
    """
    j = jacobian(f, x, chunk=chunk)
    n_out, d = j.shape[1:]
    if n_out < d:
        raise ConfigError(
            f"{d} columns in {n_out} dimensions cannot be orthogonal; penalise the reconstructor instead."
        )
    columns = j / j.norm(dim=1, keepdim=True).clamp_min(FLOOR)
    with torch.autocast(x.device.type, enabled=False):
        cosines = columns.mT @ columns
    if n_out == d:
        return -_half_log_det(cosines)
    between = cosines - cosines.diagonal(dim1=1, dim2=2).diag_embed()
    return between.square().sum(dim=(1, 2)).mean() / max(d * (d - 1), 1)


def diverse_influence(f: Map, x: Tensor, *, chunk: int | None = None) -> Tensor:
    r"""Diverse influence: minus the log-volume of J_f whose rows have an L1 budget of 1 (Nguyen & Fu 2025).

    .. math::
        - \frac{1}{2 m} E \log \det \Big( \frac{m}{D} U^\top U \Big), \qquad U_{i:} = J_{i:} / \|J_{i:}\|_1,
        \qquad m = \min(d, D)

    with U U^T in place of U^T U where D < d. In nats per dimension; at least 0, up to log(1 / FLOOR) / 2 where J is
    singular, and 0 where every output follows a single input and the inputs have equally many outputs (D >= d), or
    none has two (D < d). Rows may be dense as long as they are scattered: the condition asks that instead of sparsity.

    For a square invertible f that matches the distributions, f#p = q, E log|det J| = H(q) - H(p) is a constant. The
    volume then has no force of its own, and what is left is the budget, E sum_i log||J_i:||_1 / d: sparsity once more,
    on a log scale. The volume counts where D differs from d, or while the match is not there yet.

    Parameters
    ----------
    f, x, chunk
        As in `celltransfer.losses.jacobian.jacobian`.
    """
    j = jacobian(f, x, chunk=chunk)
    n_out, d = j.shape[1:]
    rows = j / j.abs().sum(dim=2, keepdim=True).clamp_min(FLOOR)
    with torch.autocast(x.device.type, enabled=False):
        gram = rows @ rows.mT if n_out < d else (d / n_out) * (rows.mT @ rows)
    return -_half_log_det(gram)


def _half_log_det(matrix: Tensor) -> Tensor:
    """Mean over points of log det / (2 m) for matrices (batch, m, m) of mean eigenvalue at most 1, floored; <= 0."""
    m = matrix.shape[-1]
    floored = (matrix + FLOOR * torch.eye(m, dtype=matrix.dtype, device=matrix.device)) / (1 + FLOOR)
    return torch.linalg.slogdet(floored).logabsdet.mean() / (2 * m)
