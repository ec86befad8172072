"""Distances between two samples, without training anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

# Widths of the kernels of `mmd`, in units of the root mean square distance between the samples.
WIDTHS = (0.25, 0.5, 1.0)


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Energy distance 2 E||a - b|| - E||a - a'|| - E||b - b'|| (Szekely & Rizzo 2013), unbiased; 0 for equal laws.

    Parameters
    ----------
    a, b
        Samples, shapes (n, D) and (m, D), n and m at least 2.
    """
    between = torch.cdist(a, b).mean()
    return 2 * between - _mean_distance(a) - _mean_distance(b)


def _mean_distance(a: Tensor) -> Tensor:
    n = len(a)
    return torch.pdist(a).mean() if n > 1 else a.new_zeros(())


def mmd(a: Tensor, b: Tensor, widths: Sequence[float] = WIDTHS, *, unit: float | None = None) -> Tensor:
    """Squared maximum mean discrepancy of the mean of Gaussian kernels (Gretton et al. 2012), unbiased.

    Parameters
    ----------
    a, b
        Samples, shapes (n, D) and (m, D), n and m at least 2.
    widths
        Standard deviations of the kernels.
    unit
        What they are in units of; ``None``: the root mean square distance between `a` and `b`.
    """
    square = _squares(a, b).mean().detach().clamp_min(1e-12) if unit is None else unit**2

    def kernel(squares: Tensor) -> Tensor:
        return torch.stack([torch.exp(-squares / (2 * width**2 * square)) for width in widths]).mean(dim=0)

    within = [(kernel(_squares(c, c)).sum() - len(c)) / (len(c) * (len(c) - 1)) for c in (a, b)]
    return within[0] + within[1] - 2 * kernel(_squares(a, b)).mean()


def sinkhorn_divergence(a: Tensor, b: Tensor, epsilon: float = 0.05, scaling: float = 0.5) -> Tensor:
    r"""Entropic transport without its bias, W(a, b) - (W(a, a) + W(b, b)) / 2, of cost ||a_i - b_j||^2 / D.

    By GeomLoss (Feydy et al. 2019), with a gradient close to that of the converged divergence. 0 for equal samples;
    with regularisation 0 it is the squared Wasserstein-2 distance per coordinate.

    Parameters
    ----------
    a, b
        Samples, shapes (n, D) and (m, D).
    epsilon
        Entropic regularisation, in units of the mean cost between the samples.
    scaling
        By what the length that belongs to the regularisation shrinks from one iteration to the next; towards 1 slower
        and more exact.
    """
    from geomloss import SamplesLoss

    mean = float(_squares(a.detach(), b.detach()).mean().clamp_min(1e-12)) / a.shape[1]
    to_unit = math.sqrt(2 / a.shape[1])  # GeomLoss has half the squared distance as cost
    divergence = SamplesLoss("sinkhorn", p=2, blur=math.sqrt(mean * epsilon), scaling=scaling, backend="tensorized")
    return divergence(a * to_unit, b * to_unit)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances, shape (n, m)."""
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp_min(0)
