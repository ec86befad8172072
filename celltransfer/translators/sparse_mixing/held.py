"""What a sparse-mixing fit asks of cells held out of it: when to stop, and whether content is free of the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.translators import holdout
from celltransfer.translators.sparse_mixing.networks import Mixing, between_domains, draw
from celltransfer.translators.sparse_mixing.start import some

if TYPE_CHECKING:
    import numpy as np

SOURCE, TARGET = 0, 1
# Shuffles of the domains that tell what distance between them is chance.
SHUFFLES = 20


class Held:
    """Held-out cells of both sides, and what is asked of them during a fit."""

    def __init__(self, net: Mixing, pair: ModalityPair, rows: holdout.Split, device: torch.device) -> None:
        self.net, self.pair, self.rows, self.device = net, pair, rows, device
        self.codes = holdout.condition_codes(pair)
        self.common = net.common.cpu().numpy()
        self.compared = holdout.HeldOut(pair, rows, lambda x: x, net.side(TARGET).scaled, device)
        held = zip((pair.x, pair.y), (rows.held_x, rows.held_y), strict=True)
        self.sides = [self._take(m, matrix, own) for m, (matrix, own) in enumerate(held)]

    @property
    def enough(self) -> bool:
        """Whether there are cells enough to compare."""
        return self.compared.enough

    def objective(self, beta: float) -> float:
        """The vae's objective without anchors and matching, with draws that are the same every time."""
        total, generator = 0.0, torch.Generator(self.device).manual_seed(0)
        for m, (x, u) in enumerate(self.sides):
            mean, log_sd = self.net.side(m).encode(x)
            z = draw(mean, log_sd, generator)
            divergence = self.net.latents.divergence(mean, log_sd, z, u).mean() / x.shape[1]
            total += float(self.net.side(m).nll(z, x) + beta * divergence)
        return total

    def distance(self) -> float:
        """Energy distance of translated from target cells, all conditions together."""
        net, (x, u), (y, _) = self.net, *self.sides
        moved = net.move(x, (SOURCE, u), (TARGET, u + net.n_conditions))
        both = torch.cat([net.side(TARGET).scaled(moved), net.side(TARGET).scaled(y)])
        domains = torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).to(self.device)
        return float(between_domains(both, domains))

    def training_latents(self) -> tuple[Tensor, Tensor]:
        """Latents and domains of training cells, as many of both sides as are held out at most."""
        found = []
        with torch.no_grad():
            for m, (matrix, rows) in enumerate(((self.pair.x, self.rows.train_x), (self.pair.y, self.rows.train_y))):
                x, u = self._take(m, matrix, rows)
                mean, log_sd = self.net.side(m).encode(x)
                found.append((draw(mean, log_sd, torch.Generator(self.device).manual_seed(m)), u))
        return torch.cat([z for z, _ in found]), torch.cat([u for _, u in found])

    @torch.no_grad()
    def leak(self) -> tuple[float, float] | None:
        """Energy distance of content between domains, and the most of it that shuffles of the domains gave."""
        content = ~self.net.latents.style()
        if not self.enough or not content.any():
            return None
        z = torch.cat([self.net.side(m).encode(x)[0][:, content] for m, (x, _) in enumerate(self.sides)])
        u = torch.cat([u for _, u in self.sides])
        generator = torch.Generator().manual_seed(0)
        shuffles = [u[torch.randperm(len(u), generator=generator).to(u.device)] for _ in range(SHUFFLES)]
        return float(between_domains(z, u)), max(float(between_domains(z, other)) for other in shuffles)

    def _take(self, m: int, matrix: Matrix, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """At most `holdout.MOST_CELLS` of these cells, of conditions that both sides have, and their domains."""
        rows = some(rows[self.common[self.codes[m][rows]]], holdout.MOST_CELLS)
        codes = torch.as_tensor(self.codes[m][rows], dtype=torch.long, device=self.device)
        x = torch.as_tensor(dense(matrix[rows]), device=self.device)
        return x, self.net.domain(m, codes, len(rows))
