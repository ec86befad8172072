"""Adversarial matching of distributions: pure functions of logits and discriminators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from collections.abc import Callable


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """Loss the discriminator minimises.

    Parameters
    ----------
    real, fake
        Logits on target cells and on translations, shapes (batch,).
    kind
        ``"non_saturating"``: E softplus(-D(y)) + E softplus(D(f(x))), the logistic loss of Goodfellow et al. 2014.
        ``"least_squares"``: E (D(y) - 1)^2 / 2 + E D(f(x))^2 / 2, Mao et al. 2017.
    """
    if kind == "least_squares":
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """Loss the translator minimises: E softplus(-D(f(x))), or E (D(f(x)) - 1)^2 / 2 with ``kind="least_squares"``."""
    if kind == "least_squares":
        return 0.5 * (fake - 1).square().mean()
    return softplus(-fake).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """R1 gradient penalty (1/2) E ||grad D(y)||^2 on target cells (Mescheder et al. 2018).

    Parameters
    ----------
    discriminator
        Maps (batch, D) to logits (batch,).
    real
        Target cells, shape (batch, D).
    """
    inputs = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(inputs).sum(), inputs, create_graph=True)
    return 0.5 * gradient.square().sum(dim=1).mean()
