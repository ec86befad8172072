"""All networks of a sparse-mixing model: latents with a law per domain, and one side per modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from celltransfer.losses.discrepancy import energy_distance

if TYPE_CHECKING:
    from celltransfer.translators.sparse_mixing.domains import Latents
    from celltransfer.translators.sparse_mixing.likelihoods import Side


class Mixing(nn.Module):
    """x = g_m(z) for a cell of modality m, z with the law of domain u = (m, condition).

    Parameters
    ----------
    latents
        Their law in every domain, modality by modality.
    sides
        Encoder and decoder of source and target; twice the same where both share their features.
    discriminators
        Of real against made cells, by modality; none in the VAE form.
    n_conditions
        Conditions in each modality, 1 or more.
    """

    common: Tensor

    def __init__(
        self, latents: Latents, sides: list[Side], discriminators: list[nn.Module], *, n_conditions: int = 1
    ) -> None:
        super().__init__()
        self.latents, self.n_conditions = latents, n_conditions
        # Conditions that both modalities have: the style of others has no law that was learned.
        self.register_buffer("common", torch.ones(n_conditions, dtype=torch.bool))
        self.sides, self.discriminators = nn.ModuleList(sides), nn.ModuleList(discriminators)

    def side(self, m: int) -> Side:
        """Encoder and decoder of modality m."""
        return self.sides[m]  # type: ignore[return-value]

    def domain(self, m: int, codes: Tensor | None, n: int) -> Tensor:
        """Domains of n cells of modality m and these conditions, shape (n,)."""
        base = torch.full((n,), m * self.n_conditions, device=self.latents.bits.device)
        return base if codes is None else base + codes

    def move(self, x: Tensor, source: tuple[int, Tensor], target: tuple[int, Tensor]) -> Tensor:
        """Cells `x` of a (modality, domains) as they would be in another: encode, F_u, its inverse there, decode.

        Within one Gaussian side the part of `x` that the latents do not explain is the cell's own and goes with it.
        Style stays as it is where one of the conditions is not in both modalities.
        """
        (m, u), (n, to) = source, target
        z = self.side(m).encode(x)[0]
        learned = self.common[u % self.n_conditions] & self.common[to % self.n_conditions]
        moved = self.side(n).expected(torch.where(learned[:, None], self.latents.moved(z, to=to, u=u), z))
        if self.side(m) is not self.side(n) or self.side(m).likelihood != "gaussian":
            return moved
        return x + moved - self.side(m).expected(z)


def draw(mean: Tensor, log_sd: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from N(mean, sd^2) through which gradients pass."""
    return mean + log_sd.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)


def between_domains(e: Tensor, u: Tensor) -> Tensor:
    """Energy distance of each domain's rows of `e` from those of all others, averaged by the domains' shares."""
    codes, counts = u.unique(return_counts=True)
    total = e.new_zeros(())
    for code, count in zip(codes, counts, strict=True):
        inside = u == code
        if 2 <= count <= len(u) - 2:
            total = total + count / len(u) * energy_distance(e[inside], e[~inside])
    return total
