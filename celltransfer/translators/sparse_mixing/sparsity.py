r"""Sparse mixing: how many latents an output of the decoder depends on, with the scale of the latents fixed.

The norm of J_g alone is no criterion: z -> a z is absorbed by whatever gives z its law (the domain flow F_u), and
lowers the norm by 1 / a for free. Both gauges below make the criterion blind to the scale of every latent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celltransfer.errors import ConfigError
from celltransfer.losses.jacobian import Map, exact_l1, jacobian, probe_l1, sparse_probes

if TYPE_CHECKING:
    from collections.abc import Callable

GAUGES, NORMS = ("variance", "column"), ("l1", "l2")
FLOOR = 1e-12


def mixing_sparsity(
    g: Map,
    z: Tensor,
    *,
    norm: str = "l1",
    gauge: str = "variance",
    n_probes: int | None = None,
    step: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sparsity of the decoder's Jacobian, 0 or more, unchanged when a latent z_j is scaled.

    .. math::
        \text{variance: } \frac1D E \| J_g(z) \, \mathrm{diag}(sd(z)) \|_1 \qquad
        \text{column: } \frac{1}{d \sqrt D} E \sum_j \| J_{:j} \|_1 / \| J_{:j} \|_2

    The first is the L1 norm for latents brought to unit variance over the batch: mean absolute row sum, in units of
    the outputs. The second does not depend on the scale of the outputs either; it is 1 where a latent moves all
    outputs alike, and 1 / sqrt(D) where it moves a single one.

    Parameters
    ----------
    g
        Decoder, (batch, d) to (batch, D), row by row.
    z
        Latents, shape (batch, d), 2 or more. Their spread is differentiated, too: a criterion that held it fixed
        would let the scale drift.
    norm
        ``"l1"``; or ``"l2"``, the mean squared norm in place of the absolute one (variance gauge only): it does not
        prefer sparse matrices, for comparison.
    gauge
        ``"variance"`` or ``"column"``.
    n_probes
        ``None``: the whole Jacobian, d directions. Otherwise so many random columns per point, in one call.
    step
        ``None``: forward-mode derivatives; otherwise finite differences with this step (with `n_probes` only).
    generator
        Source of the columns, on the device of `z`.
    """
    if norm not in NORMS or gauge not in GAUGES or (norm == "l2" and gauge == "column"):
        raise ConfigError(f"norm={norm!r} with gauge={gauge!r}; norms are l1 and l2, gauges variance and column.")
    if len(z) < 2:
        raise ConfigError("The spread of latents is taken over a batch: it needs 2 cells or more.")
    if gauge == "column":
        columns = _columns(g, z, n_probes, step, generator)
        ratio = columns.abs().sum(-1) / (columns.square().sum(-1) + FLOOR).sqrt()
        return ratio.mean() / math.sqrt(columns.shape[-1])
    scale = z.std(dim=0) + FLOOR
    unit: Callable[[Tensor], Tensor] = lambda w: g(w * scale)  # noqa: E731
    w = z / scale
    if norm == "l2":
        columns = _columns(unit, w, n_probes, step, generator)
        return z.shape[1] * columns.square().mean()
    if n_probes is None:
        return exact_l1(unit, w)
    return probe_l1(unit, w, n_probes=n_probes, s=1, step=step, direction="binary", generator=_given(generator))


def _columns(g: Map, z: Tensor, n_probes: int | None, step: float | None, generator: torch.Generator | None) -> Tensor:
    """Columns of the Jacobian, (K, batch, D): all of them, or `n_probes` random ones per point."""
    if n_probes is None:
        return jacobian(g, z).permute(2, 0, 1)
    units = sparse_probes((n_probes, *z.shape), 1, _given(generator), z.device, "binary").to(z.dtype)
    if step is None:
        return torch.func.vmap(lambda v: torch.func.jvp(g, (z,), (v,))[1])(units)
    moved = torch.cat([z[None], z + step * units]).flatten(0, 1)
    here, there = g(moved).unflatten(0, (len(units) + 1, len(z))).split([1, len(units)])
    return (there - here) / step


def _given(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ConfigError("n_probes= draws columns at random: pass the generator to draw them with.")
    return generator
