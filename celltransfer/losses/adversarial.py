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


def critic_losses(
    critic: Callable[[Tensor, Tensor | None], Tensor],
    real: Tensor,
    fake: Tensor,
    codes: Tensor | None,
    *,
    kind: str = "non_saturating",
    r1: float = 0.0,
) -> dict[str, Tensor]:
    """What a discriminator minimises, by name: `discriminator_loss`, and `r1` times `r1_penalty` unless that is 0.

    Parameters
    ----------
    critic
        Maps cells (batch, D) and condition codes (batch,) or ``None`` to logits (batch,).
    real, fake
        Target cells and translations without gradients, shapes (batch, D).
    codes
        Conditions of either.
    """
    losses = {"discriminator": discriminator_loss(critic(real, codes), critic(fake, codes), kind)}
    if r1:
        losses["r1"] = r1 * r1_penalty(lambda inputs: critic(inputs, codes), real)
    return losses


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
