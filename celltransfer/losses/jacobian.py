r"""Sparsity of a translator's Jacobian, E||J_f(x)||_1 / D, exactly, by probes, or as a proximal step.

Penalties are normalised per output, so that their unit is the absolute row sum of the Jacobian and a weight means the
same in 2 and in 2,000 dimensions. All are computed in float32 or better: autocasting that is on around the call is
switched off inside, the layers of `f` included. Gradients reach the parameters of `f`, and `x` too where it carries
one: detach it where only `f` is to be made sparse. `f` acts on every row of its input alone, without dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Map = Callable[[Tensor], Tensor]

# 1 / E|z_j| of a coordinate on the mask.
_DIRECTIONS = {"gaussian": math.sqrt(math.pi / 2), "binary": 1.0}


def jacobian(f: Map, x: Tensor, *, chunk: int | None = None) -> Tensor:
    """J_f(x) at every point, shape (batch, D, d), in float32 or better.

    Reverse mode where D <= d, forward mode otherwise: min(d, D) directions, each as dear as one pass through `f`.

    Parameters
    ----------
    f
        Maps (batch, d) to (batch, D), row by row.
    x
        Points, shape (batch, d).
    chunk
        Directions at a time, all by default. Bounds the memory where no gradient is taken of the result; a gradient
        needs every direction's activations, batch * min(d, D) rows of them.
    """
    with torch.autocast(x.device.type, enabled=False):
        points = _precise(x)
        with torch.no_grad():
            n_out = f(points[:1]).shape[1]
        if points.shape[1] < n_out:
            return _derivative(f, points, _units(points.shape[1], points), chunk).permute(1, 2, 0)
        pull = torch.func.vjp(f, points)[1]
        return torch.func.vmap(lambda u: pull(u)[0], chunk_size=chunk)(_units(n_out, points)).transpose(0, 1)


def exact_l1(f: Map, x: Tensor, *, chunk: int | None = None) -> Tensor:
    """E||J_f(x)||_1 / D from the full Jacobian: the reference, and the choice up to about d = 64 or D = 64.

    Parameters
    ----------
    f, x, chunk
        As in `jacobian`.
    """
    return jacobian(f, x, chunk=chunk).abs().sum(dim=2).mean()


def sparse_probes(
    shape: tuple[int, int, int], s: int, generator: torch.Generator, device: torch.device, direction: str = "gaussian"
) -> Tensor:
    """Directions with exactly `s` non-zero coordinates in uniformly random places, shape (K, batch, d).

    The directions of one point are blocks of random permutations of its coordinates. Each alone is uniform; those of
    one permutation are disjoint, so K directions with K s <= d see K s different columns of the Jacobian. That is
    cheaper to draw than K independent masks, and their mean varies less.

    Parameters
    ----------
    shape
        (K, batch, d).
    s
        Non-zero coordinates, 1 to d.
    generator
        Source of the randomness, on `device`. The places it gives do not depend on `direction`.
    direction
        ``"gaussian"``: standard normal on the mask, as in Proposition 4.1. ``"binary"``: the mask itself.
    """
    n_probes, batch, d = shape
    if not 1 <= s <= d:
        raise ConfigError(f"s={s} non-zero coordinates per direction; with {d} features it is 1 to {d}.")
    if direction not in _DIRECTIONS:
        raise ConfigError(f"direction={direction!r}; it is one of {', '.join(_DIRECTIONS)}.")
    n_blocks = d // s
    order = _permutations((-(-n_probes // n_blocks), batch, d), generator, device)
    blocks = order[..., : n_blocks * s].unflatten(-1, (n_blocks, s)).transpose(1, 2)
    places = blocks.reshape(-1, batch, s)[:n_probes]
    z = torch.zeros(shape, device=device)
    if direction == "binary":
        return z.scatter_(-1, places, 1.0)
    return z.scatter_(-1, places, torch.randn(places.shape, generator=generator, device=device))


def probe_l1(
    f: Map,
    x: Tensor,
    *,
    n_probes: int = 8,
    s: int | None = None,
    step: float | None = None,
    direction: str = "gaussian",
    generator: torch.Generator,
) -> Tensor:
    r"""Masked probe of E||J_f(x)||_1 / D, for large d; all probes go through `f` in one call.

    .. math::
        R(f) = \frac{d}{s D} \sqrt{\pi / 2} \, E \| J_f(x) (m \odot g) \|_1
        \quad \text{or} \quad R(f) = \frac{d}{s D} \, E \| J_f(x) m \|_1

    with a mask m of s ones among d and a standard Gaussian g. Exact in expectation at s = 1, and for any s where no
    row of J meets the mask twice. Otherwise rows are counted low: the variance falls with `s`, and the bias grows
    with it. A dense row with entries of one size counts 1 / sqrt(s) of its sum. Binary directions add up the entries
    they meet: exact for a row of one sign, and blind to entries that cancel, which Gaussian directions are not.

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
        ``None``: forward-mode derivative. Otherwise finite differences (f(x + h z) - f(x)) / h with this h, along the
        same z if the generator is in the same state. Differences are the cheaper, and ask nothing of `f`'s layers.
    direction
        ``"gaussian"`` or ``"binary"``, see `sparse_probes`.
    generator
        Source of the directions, on the device of `x`.
    """
    batch, d = x.shape
    s = max(1, d // 10) if s is None else s
    with torch.autocast(x.device.type, enabled=False):
        points = _precise(x)
        z = sparse_probes((n_probes, batch, d), s, generator, x.device, direction).to(points.dtype)
        change = _derivative(f, points, z) if step is None else _difference(f, points, z, step)
    return (d / s) * _DIRECTIONS[direction] * change.abs().mean()


def probe_support(row_sizes: ArrayLike, d: int, s: int) -> tuple[float, float, float]:
    r"""Expected E||J z||_0 for a sparse Gaussian probe z, with the bounds of Proposition 4.1: (value, lower, upper).

    .. math::
        E \|J z\|_0 = \sum_i 1 - \binom{d - c_i}{s} / \binom{d}{s}, \qquad
        \frac{s}{d} \sum_i c_i - \frac{s (s - 1)}{2 d (d - 1)} \sum_i c_i (c_i - 1)
        \le E \|J z\|_0 \le \frac{s}{d} \sum_i c_i

    Parameters
    ----------
    row_sizes
        Non-zero entries c_i of each row of J, each 0 to d.
    d
        Columns of J.
    s
        Non-zero coordinates of z, 1 to d.
    """
    sizes = np.asarray(row_sizes, dtype=np.int64).ravel()
    if not 1 <= s <= d or (sizes.size and not 0 <= sizes.min() <= sizes.max() <= d):
        raise ConfigError(f"s={s} has to be 1 to d={d}, and row sizes 0 to d.")
    # log of the ratio for c: the sum over j < c of log(1 - s / (d - j)), which neither overflows nor cancels.
    with np.errstate(divide="ignore"):
        missed = np.log1p(-np.minimum(s / (d - np.arange(d)), 1.0))
    value = -np.expm1(np.concatenate([[0.0], np.cumsum(missed)])[sizes]).sum()
    upper = s / d * sizes.sum()
    twice = s * (s - 1) / (2 * d * max(d - 1, 1)) * (sizes * (sizes - 1)).sum()
    return float(value), float(upper - twice), float(upper)


@torch.no_grad()
def linear_proximal_step(weight: Tensor, optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Soft-threshold a linear layer's weight in place: the proximal step of ``strength * ||W||_1``.

    The step length is Adam's own per coordinate, lr / (sqrt(v) + eps) with v bias-corrected, as the gradient step took
    it; coordinates that the losses do not hold away from zero become exactly zero. The fixed points are those of the
    lasso, whatever the step lengths. A weight that has not been stepped yet is left alone.

    Parameters
    ----------
    weight
        The Jacobian W of a linear map, shape (D, d).
    optimizer
        The Adam optimiser (without amsgrad) that has just stepped `weight`.
    strength
        Weight of ||W||_1 in the objective.
    """
    group = next(g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
    state = optimizer.state.get(weight)
    if not state:
        return
    second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    threshold = strength * group["lr"] / (second.sqrt() + group["eps"])
    weight.copy_(weight.sign() * (weight.abs() - threshold).clamp_min(0))


def _permutations(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Of the last axis, independent along the others."""
    keys = torch.rand(shape, generator=generator, device=device)
    if device.type == "cpu":  # where NumPy sorts three times faster
        return torch.from_numpy(np.argsort(keys.numpy(), axis=-1))
    return keys.argsort(dim=-1)


def _precise(x: Tensor) -> Tensor:
    """In float32, or float64 if it is: in bfloat16 a difference at h = 1e-3 is off by a factor of 3."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _units(n: int, x: Tensor) -> Tensor:
    """Every unit vector of n, at every point; shape (n, batch, n)."""
    return torch.eye(n, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)


def _derivative(f: Map, x: Tensor, z: Tensor, chunk: int | None = None) -> Tensor:
    """J_f(x) z for K directions, shape (K, batch, D). The values f(x) are computed once, not once per direction."""
    return torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1], chunk_size=chunk)(z)


def _difference(f: Map, x: Tensor, z: Tensor, step: float) -> Tensor:
    """The same from K + 1 copies of the batch in one call."""
    moved = torch.cat([x[None], torch.add(x, z, alpha=step)]).flatten(0, 1)
    here, there = f(moved).unflatten(0, (len(z) + 1, len(x))).split([1, len(z)])
    return (there - here) / step
