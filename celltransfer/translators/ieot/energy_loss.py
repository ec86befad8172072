"""Inverse entropic optimal transport with free energies: the loss's gradient from samples, and the sampler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def surrogate(
    cost_pairs: Tensor,
    potential_pairs: Tensor,
    potential_targets: Tensor,
    free_pairs: Tensor,
    free_rest: Tensor,
    *,
    weight_unpaired: float = 1.0,
    share: float = 0.0,
) -> dict[str, Tensor]:
    r"""Terms whose sum has the gradient of the loss, not its value.

    With :math:`\pi(y | x) \propto \exp(f(y) - c(x, y))` and weight :math:`\lambda` of the unpaired cells the loss is

    .. math::
        E_{pairs}[-\log \pi(y | x)]
        + \lambda \left( E_{pairs} f - E_q f + E_p \log Z - E_{pairs} \log Z \right),

    and :math:`\nabla \log Z(x) = E_{y \sim \pi(\cdot | x)} \nabla (f(y) - c(x, y))`: proposition A.1 of the paper for
    :math:`\lambda = 1`, minus the likelihood of the pairs for :math:`\lambda = 0`. The pairs' sources are among the
    samples of p, as a share of them with samples of their own: otherwise the loss has no lower bound.

    Parameters
    ----------
    cost_pairs, potential_pairs
        c and f at the pairs, shape (k,).
    potential_targets
        f at unpaired target cells, shape (m,).
    free_pairs, free_rest
        f - c at samples y of the model, for x among the pairs and for other x; any lengths, also 0 for the latter.
    weight_unpaired
        The weight, from 0 to 1.
    share
        Share of the pairs' sources among all sources.
    """
    weight = weight_unpaired
    rest = weight * (1 - share) * free_rest.mean() if len(free_rest) else free_rest.sum()
    return {
        "pairs": cost_pairs.mean() - (1 - weight) * potential_pairs.mean(),
        "targets": -weight * potential_targets.mean(),
        "samples": (1 - weight + weight * share) * free_pairs.mean() + rest,
    }


def langevin(
    energy: Callable[[Tensor], Tensor],
    y: Tensor,
    *,
    n_steps: int,
    step: float,
    noise: Callable[[], Tensor],
    clip: float = math.inf,
) -> Tensor:
    r"""Unadjusted Langevin algorithm: :math:`y \leftarrow y - \frac h2 \nabla E(y) + \sqrt h\, z`.

    Its stationary law is that of density proportional to exp(-E) up to a bias of order h: for a normal law with
    precision a the variance is 1 / (a (1 - h a / 4)).

    Parameters
    ----------
    energy
        (batch, D) -> (batch,), row by row.
    y
        Where the chains start, shape (batch, D).
    n_steps, step
        Number of steps, and h.
    noise
        Standard normal numbers of the shape of `y`, new ones in every call.
    clip
        Longest gradient, as a length divided by the root of D; longer ones are shortened.

    Returns
    -------
    Where the chains end, without a gradient.
    """
    y = y.detach()
    longest = clip * math.sqrt(y.shape[1])
    for _ in range(n_steps):
        with torch.enable_grad():
            at = y.requires_grad_()
            (slope,) = torch.autograd.grad(energy(at).sum(), at)
        if math.isfinite(longest):
            slope = slope * (longest / slope.norm(dim=1, keepdim=True).clamp_min(longest))
        y = y.detach() - 0.5 * step * slope + math.sqrt(step) * noise()
    return y
