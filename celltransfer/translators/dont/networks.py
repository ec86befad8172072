"""Transport with a place to start from: the networks of dynamic optimal neural translation."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from celltransfer.errors import InputError
from celltransfer.translators.dont.steps import ResidualTransport, along

if TYPE_CHECKING:
    from collections.abc import Sequence


class PlacedTransport(nn.Module):
    """Residual transport from source to target cells: where it starts, in which units, and both ways through it.

    Transport takes place in target features that are centred and divided by one number.

    Attributes
    ----------
    transport, average
        The steps, and the moving average of their parameters, which translates after training.
    weight, offset
        The affine start, source features into the space of transport.
    mean, scale
        Of the target's features.
    costs
        Weights of the cost, one for each target feature.
    discriminator
        Of target cells against transported ones, during a fit with ``discrepancy="gan"``; otherwise ``None``.
    undone
        Whether steps can be undone: they could for held-out cells, or their bound says so where there are too few.
    """

    weight: Tensor
    offset: Tensor
    mean: Tensor
    scale: Tensor
    costs: Tensor
    undone: Tensor

    def __init__(self, transport: ResidualTransport, *, d: int, out: int) -> None:
        super().__init__()
        self.transport, self.average = transport, copy.deepcopy(transport).requires_grad_(False)
        self.discriminator: nn.Module | None = None
        self.register_buffer("weight", torch.zeros(d, out))
        for name in ("offset", "mean"):
            self.register_buffer(name, torch.zeros(out))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("costs", torch.ones(out))
        self.register_buffer("undone", torch.zeros((), dtype=torch.bool))

    def source(self, x: Tensor) -> Tensor:
        """Source cells laid into the space of transport, (batch, d) -> (batch, D)."""
        return x @ self.weight + self.offset

    def target(self, y: Tensor) -> Tensor:
        """Target cells in the space of transport."""
        return (y - self.mean) / self.scale

    def features(self, z: Tensor) -> Tensor:
        """Inverse of `target`."""
        return z * self.scale + self.mean

    def undo(self, y: Tensor) -> Tensor:
        """Where transport to the target cells `y` starts."""
        found = self.average.back(self.target(y))
        if not found.arrived:
            raise InputError(
                f"Steps cannot be undone for these {len(y)} cells: the way back still moves by {found.residual:.2g} "
                "after its last iteration. They may lie where no cell is translated to; or fit with lipschitz=0.9."
            )
        return found.points

    def lift(self, z: Tensor) -> Tensor:
        """Inverse of `source`, where the start has one."""
        centred = (z - self.offset).cpu().double()  # not every device has double precision
        return torch.linalg.solve(self.weight.T.cpu().double(), centred.T).T.to(z)

    @torch.no_grad()
    def way(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """Points between source cells (0) and their translations (1), target features, (times, batch, D)."""
        points, _ = self.average.path(self.source(x))
        return torch.stack([self.features(along(points, t)) for t in times])

    @torch.no_grad()
    def way_back(self, y: Tensor, times: Sequence[float]) -> Tensor:
        """The same points from target cells (0) to where they come from (1), source features, (times, batch, d)."""
        points, _ = self.average.path(self.undo(y))
        return torch.stack([self.lift(along(points, 1 - t)) for t in times])
