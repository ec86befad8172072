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


def mmd(a: Tensor, b: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """Squared maximum mean discrepancy of the mean of Gaussian kernels (Gretton et al. 2012), unbiased.

    Parameters
    ----------
    a, b
        Samples, shapes (n, D) and (m, D), n and m at least 2.
    widths
        Standard deviations of the kernels, in units of the root mean square distance between `a` and `b`.
    """
    unit = _squares(a, b).mean().detach().clamp_min(1e-12)

    def kernel(squares: Tensor) -> Tensor:
        return sum((torch.exp(-squares / (2 * width**2 * unit)) for width in widths), torch.zeros_like(squares)) / len(
            widths
        )

    within = [(kernel(_squares(c, c)).sum() - len(c)) / (len(c) * (len(c) - 1)) for c in (a, b)]
    return within[0] + within[1] - 2 * kernel(_squares(a, b)).mean()


def sinkhorn_divergence(a: Tensor, b: Tensor, epsilon: float = 0.05, iterations: int = 10) -> Tensor:
    r"""Entropic transport without its bias, W(a, b) - (W(a, a) + W(b, b)) / 2, of cost ||a_i - b_j||^2 / D.

    The gradient is that of the converged divergence: potentials are found without one, and a last iteration has it
    (Feydy et al. 2019). Averaged iterations in the log domain, the regularisation coming down to `epsilon` by them.
    0 for equal samples; with regularisation 0 it is the squared Wasserstein-2 distance per coordinate.

    Parameters
    ----------
    a, b
        Samples, shapes (n, D) and (m, D).
    epsilon
        Entropic regularisation, in units of the mean cost between the samples.
    iterations
        Iterations, of which half bring the regularisation down.
    """
    between = _squares(a, b) / a.shape[1]
    mean = float(between.detach().mean().clamp_min(1e-12))
    # From one mean cost down to epsilon, geometrically, and then so many iterations there.
    falling = torch.logspace(0, math.log10(epsilon), max(iterations // 2, 1)).tolist()
    schedule = [mean * e for e in falling + [epsilon] * (iterations - len(falling))]
    within = [_squares(c, c.detach()) / a.shape[1] for c in (a, b)]
    with torch.no_grad():
        f, g = _potentials(between, schedule)
        own = [_own_potential(cost, schedule) for cost in within]
    last = schedule[-1]
    f_last = _soft_min(_squares(a, b.detach()) / a.shape[1], g, last)
    g_last = _soft_min(_squares(b, a.detach()) / a.shape[1], f, last)
    own_last = [_soft_min(cost, potential, last) for cost, potential in zip(within, own, strict=True)]
    return (f_last - own_last[0]).mean() + (g_last - own_last[1]).mean()


def _potentials(cost: Tensor, schedule: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Dual potentials, shapes (n,) and (m,), by averaged Sinkhorn iterations."""
    f = _soft_min(cost, cost.new_zeros(cost.shape[1]), schedule[0])
    g = _soft_min(cost.T, cost.new_zeros(cost.shape[0]), schedule[0])
    for epsilon in schedule:
        f, g = (f + _soft_min(cost, g, epsilon)) / 2, (g + _soft_min(cost.T, f, epsilon)) / 2
    return f, g


def _own_potential(cost: Tensor, schedule: Sequence[float]) -> Tensor:
    """The potential of a sample and itself, shape (n,)."""
    f = _soft_min(cost, cost.new_zeros(len(cost)), schedule[0])
    for epsilon in schedule:
        f = (f + _soft_min(cost, f, epsilon)) / 2
    return f


def _soft_min(cost: Tensor, potential: Tensor, epsilon: float) -> Tensor:
    """-epsilon log mean_j exp((potential_j - cost_ij) / epsilon), shape (n,)."""
    return -epsilon * (torch.logsumexp((potential - cost) / epsilon, dim=1) - math.log(cost.shape[1]))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances, shape (n, m)."""
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp_min(0)
