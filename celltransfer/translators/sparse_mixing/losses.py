"""Terms of a sparse-mixing fit, one modality at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celltransfer.losses.adversarial import critic_losses, generator_loss
from celltransfer.translators.sparse_mixing.networks import Mixing, draw

if TYPE_CHECKING:
    from celltransfer.data.batches import Batch

# Weighted terms by name; latents for the sparsity term; their noise for the match.
Terms = tuple[dict[str, Tensor], Tensor, Tensor]


def vae_terms(net: Mixing, m: int, x: Tensor, u: Tensor, beta: float, generator: torch.Generator) -> Terms:
    """Reconstruction and divergence, per feature."""
    mean, log_sd = net.side(m).encode(x)
    z = draw(mean, log_sd, generator)
    divergence = net.latents.divergence(mean, log_sd, z, u).mean() / x.shape[1]
    return {"reconstruction": net.side(m).nll(z, x), "divergence": beta * divergence}, z, net.latents.to_noise(z, u)[0]


def gan_terms(net: Mixing, m: int, x: Tensor, u: Tensor, codes: Tensor | None, generator: torch.Generator) -> Terms:
    """Deceiving the discriminator, finding the noise of made cells again, and remaking real ones.

    It is the noise that is found, not the latents: these could be shrunk, and their error with them.
    """
    side = net.side(m)
    e = _noise(net, u, generator)
    z = net.latents.from_noise(e, u)
    fake = side.expected(z)
    mean = side.encode(x)[0]
    terms = {
        "gan": generator_loss(net.discriminators[m](side.scaled(fake), codes)),
        "found": (net.latents.to_noise(side.encode(fake)[0], u)[0] - e).square().mean(),
        "remade": (side.decoder(mean) - side.scaled(x)).square().mean(),
    }
    return terms, z, net.latents.to_noise(mean, u)[0]


def critic_terms(
    net: Mixing, m: int, x: Tensor, u: Tensor, codes: Tensor | None, generator: torch.Generator, r1: float
) -> dict[str, Tensor]:
    """The discriminator's losses on real and made cells of modality `m`."""
    side = net.side(m)
    with torch.no_grad():
        fake = side.scaled(side.expected(net.latents.from_noise(_noise(net, u, generator), u)))
    return critic_losses(net.discriminators[m], side.scaled(x), fake, codes, r1=r1)


def anchor_loss(net: Mixing, batch: Batch, codes: Tensor | None) -> Tensor:
    """Misses of the partners by translation both ways, as shares of the features' scale, and of their noise."""
    sides = [(m, x, net.domain(m, codes, len(x))) for m, x in enumerate((batch.xa, batch.ya))]
    means = [net.side(m).encode(x)[0] for m, x, _ in sides]
    noises = [net.latents.to_noise(z, u)[0] for z, (_, _, u) in zip(means, sides, strict=True)]
    missed = (noises[0] - noises[1]).square().mean()
    for z, (_, _, u), (n, y, to) in zip(means, sides, reversed(sides), strict=True):
        moved, side = net.latents.moved(z, u, to), net.side(n)
        gaussian = side.likelihood == "gaussian"
        error = (side.decoder(moved) - side.scaled(y)).square().mean() if gaussian else side.nll(moved, y)
        missed = missed + error
    return missed


def _noise(net: Mixing, u: Tensor, generator: torch.Generator) -> Tensor:
    """Noise to make cells of domains `u` from."""
    return torch.randn((len(u), net.latents.flow.d), generator=generator, device=u.device)
