r"""Sparsity of a translator's Jacobian, E||J_f(x)||_1 / D, exactly, by probes, or as a proximal step.

All functions return the penalty normalised per output, so that its unit is the absolute row sum of the Jacobian and
a weight means the same in 2 and in 2,000 dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def exact_l1(f: Map, x: Tensor) -> Tensor:
    """E||J_f(x)||_1 / D from the full Jacobian, in float32; for small d.

    Parameters
    ----------
    f
        Maps (batch, d) to (batch, D), row by row.
    x
        Points, shape (batch, d).
    """
    with torch.autocast(x.device.type, enabled=False):
        points = x.to(torch.promote_types(x.dtype, torch.float32))
        per_point = torch.func.vmap(torch.func.jacfwd(lambda row: f(row[None])[0]))(points)
    return per_point.abs().sum(dim=(1, 2)).mean() / per_point.shape[1]


def sparse_probes(shape: tuple[int, int, int], s: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Directions z = m * g with exactly `s` ones in the mask m and standard Gaussian g, shape (K, batch, d)."""
    scores = torch.rand(shape, generator=generator, device=device)
    mask = torch.zeros(shape, device=device).scatter_(-1, scores.topk(s, dim=-1).indices, 1.0)
    return mask * torch.randn(shape, generator=generator, device=device)


def probe_l1(
    f: Map,
    x: Tensor,
    *,
    n_probes: int = 8,
    s: int | None = None,
    step: float | None = None,
    generator: torch.Generator,
) -> Tensor:
    r"""Masked Gaussian probe of E||J_f(x)||_1 / D, for large d; all probes go through `f` in one call, in float32.

    .. math:: R(f) = \frac{d}{s D} \sqrt{\pi / 2} \, E \| J_f(x) z \|_1, \quad z = m \odot g

    Unbiased at s = 1. For s > 1 a row that meets the mask more than once is counted low: the variance falls with `s`
    and the relative bias grows about linearly in it. For a dense Jacobian the bias is a factor of about 1 / sqrt(s).

    Parameters
    ----------
    f
        Maps (batch, d) to (batch, D), row by row.
    x
        Points, shape (batch, d).
    n_probes
        Directions per point, K.
    s
        Non-zero coordinates per direction; d / 10 by default.
    step
        ``None``: forward-mode derivative. Otherwise finite differences (f(x + h z) - f(x)) / h with this h.
    generator
        Source of the directions, on the device of `x`.
    """
    batch, d = x.shape
    s = max(1, d // 10) if s is None else s
    z = sparse_probes((n_probes, batch, d), s, generator, x.device)
    with torch.autocast(x.device.type, enabled=False):
        change = _derivative(f, x.float(), z) if step is None else _difference(f, x.float(), z, step)
    return (d / s) * math.sqrt(math.pi / 2) * change.abs().mean()


def _derivative(f: Map, x: Tensor, z: Tensor) -> Tensor:
    """J_f(x) z for stacked directions, shape (K * batch, D)."""
    points = x.expand(len(z), *x.shape).reshape(-1, x.shape[1])
    return torch.func.jvp(f, (points,), (z.reshape(-1, x.shape[1]),))[1]


def _difference(f: Map, x: Tensor, z: Tensor, step: float) -> Tensor:
    """The same from K + 1 copies of the batch in one call."""
    moved = (x + step * z).reshape(-1, x.shape[1])
    values = f(torch.cat([x, moved])).reshape(len(z) + 1, len(x), -1)
    return (values[1:] - values[:1]) / step


@torch.no_grad()
def linear_proximal_step(weight: Tensor, optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Soft-threshold a linear layer's weight in place: the proximal step of ``strength * ||W||_1``.

    The step length is Adam's own per coordinate, lr / (sqrt(v) + eps) with v bias-corrected, as the gradient step took
    it; coordinates that the losses do not hold away from zero become exactly zero.

    Parameters
    ----------
    weight
        The Jacobian W of a linear map, shape (D, d).
    optimizer
        The Adam optimiser that has just stepped `weight`.
    strength
        Weight of ||W||_1 in the objective.
    """
    group = next(g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
    state = optimizer.state[weight]
    second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    threshold = strength * group["lr"] / (second.sqrt() + group["eps"])
    weight.copy_(weight.sign() * (weight.abs() - threshold).clamp_min(0))
