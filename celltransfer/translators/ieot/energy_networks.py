"""Energy models of a conditional law: costs, the law, and the persistent chains that sample it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

LOWEST_PRECISION = 0.5
"""Of a distance cost, where the target has unit variance."""

# Precision of the normal law that holds a joint cost together.
CONFINEMENT = 0.1


class Cost(Protocol):
    """c(x, y), in two parts: what hangs on x alone is computed once for all steps of a chain.

    It has to grow with the square of y, and a potential less, so that exp(f - c) has a finite integral. And c(x, 0) has
    to be 0: a function of x alone cancels in the law, but its means over the anchors and over all sources differ, and
    the loss would have no lower bound.
    """

    def prepare(self, x: Tensor) -> Tensor:
        """What the cost needs of x, shape (batch, d) -> (batch, any)."""

    def start(self, context: Tensor, noise: Tensor) -> Tensor:
        """Where a new chain starts, from standard normal `noise` (batch, D); same shape."""

    def __call__(self, context: Tensor, y: Tensor) -> Tensor:
        """Cost, shape (batch,)."""


class DistanceCost(nn.Module):
    """c(x, y) = sum_d precision_d ((T_d(x) - y_d)^2 - T_d(x)^2) / 2 with a network T.

    Parameters
    ----------
    net
        T, (batch, d) -> (batch, D).
    n_out
        D.
    most
        Highest precision.
    """

    def __init__(self, net: nn.Module, n_out: int, most: float) -> None:
        super().__init__()
        self.net, self.most = net, most
        self.log_precision = nn.Parameter(torch.zeros(n_out))

    @property
    def precision(self) -> Tensor:
        """Of every target feature, shape (D,)."""
        return self.log_precision.exp().clamp(LOWEST_PRECISION, self.most)

    def prepare(self, x: Tensor) -> Tensor:
        """T(x), shape (batch, D)."""
        return self.net(x)

    def start(self, context: Tensor, noise: Tensor) -> Tensor:
        """From the law of a flat potential."""
        return context + noise * self.precision.rsqrt()

    def forward(self, context: Tensor, y: Tensor) -> Tensor:
        """Cost, shape (batch,)."""
        return (self.precision * y * (0.5 * y - context)).sum(1)


class JointCost(nn.Module):
    """c(x, y) = g(x, y) - g(x, 0) + `CONFINEMENT` |y|^2 / 2 with a network g of both, (batch, d + D) -> (batch, 1)."""

    def __init__(self, net: nn.Module, n_out: int) -> None:
        super().__init__()
        self.net, self.n_out = net, n_out

    def prepare(self, x: Tensor) -> Tensor:
        """X itself, and g(x, 0) in a last column."""
        return torch.cat([x, self.net(torch.cat([x, x.new_zeros(len(x), self.n_out)], dim=1))], dim=1)

    def start(self, context: Tensor, noise: Tensor) -> Tensor:
        """From the standard normal law."""
        return noise

    def forward(self, context: Tensor, y: Tensor) -> Tensor:
        """Cost, shape (batch,)."""
        x, at_zero = context[:, :-1], context[:, -1]
        return self.net(torch.cat([x, y], dim=1)).squeeze(1) - at_zero + 0.5 * CONFINEMENT * y.square().sum(1)


class Law(nn.Module):
    """The conditional law of density proportional to exp(f(y) - c(x, y)), of scaled cells."""

    cost: Any

    def __init__(self, cost: nn.Module, potential: nn.Module) -> None:
        super().__init__()
        self.cost, self.potential = cost, potential

    def f(self, y: Tensor) -> Tensor:
        """Potential, shape (batch,)."""
        return self.potential(y).squeeze(1)

    def energy(self, context: Tensor, y: Tensor) -> Tensor:
        """C - f, shape (batch,)."""
        return self.cost(context, y) - self.f(y)


class Chains(nn.Module):
    """Replay buffer: sources x and the ends of their chains y, of which a share starts anew in every step.

    Parameters
    ----------
    x, y
        First sources and ends, shapes (size, d) and (size, D).
    """

    x: Tensor
    y: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x.clone())
        self.register_buffer("y", y.clone())

    def draw(
        self, n: int, fresh: Tensor, start: Callable[[Tensor], Tensor], renew: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`n` chains: their places, sources and ends so far. A share `renew` has sources out of `fresh` instead.

        `start` gives first values for sources.
        """
        device = self.x.device
        places = torch.randperm(len(self.x), generator=generator, device=device)[:n]
        x, y = self.x[places], self.y[places]
        anew = torch.rand(len(places), generator=generator, device=device) < renew
        chosen = torch.randint(len(fresh), (len(places),), generator=generator, device=device)
        x = torch.where(anew[:, None], fresh[chosen], x)
        return places, x, torch.where(anew[:, None], start(x), y)

    @torch.no_grad()
    def put(self, places: Tensor, x: Tensor, y: Tensor) -> None:
        """Keep where chains have come to."""
        self.x[places], self.y[places] = x, y
