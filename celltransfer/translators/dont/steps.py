"""Transport in small residual steps, z + dt v_1(z) and so on: a path, a cost along it, and a way back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from celltransfer.nn.blocks import MLP

if TYPE_CHECKING:
    from collections.abc import Sequence

# The way back has arrived where an iteration moves no coordinate further than this.
ARRIVED = 1e-6
MOST_ITERATIONS = 200
# How much further than that it may still move, for points of ordinary size and in proportion for larger ones.
SLACK = 10.0


class Back(NamedTuple):
    """Where the way back ends, shape (batch, d); how far its last iterations moved, and the most iterations of a step.

    The residual is the largest over cells and coordinates; above `ARRIVED` a step did not come to rest.
    """

    points: Tensor
    residual: float
    iterations: int

    @property
    def arrived(self) -> bool:
        """Whether every step came to rest, up to rounding."""
        size = float(self.points.abs().max()) if len(self.points) else 0.0
        return self.residual <= SLACK * ARRIVED * max(1.0, size)


class ResidualTransport(nn.Module):
    r"""Steps :math:`\phi_{j+1} = \phi_j + dt\, v_j(\phi_j)`, dt = 1 / number of steps, a network of its own for each.

    The Euler discretisation of a flow from t = 0 to 1. A step is invertible where dt Lip(v_j) < 1. The velocities'
    activation has slopes of at most one, so the product of the spectral norms of its layers bounds Lip(v_j).

    Parameters
    ----------
    d
        Coordinates.
    steps
        Number of steps.
    hidden
        Widths of the hidden layers of a velocity.
    gain
        Weights start with standard deviation ``gain / sqrt(inputs)`` and biases at 0: a small gain starts near the
        identity.
    """

    def __init__(self, d: int, steps: int, hidden: Sequence[int], gain: float = 0.1) -> None:
        super().__init__()
        self.velocities = nn.ModuleList(MLP(d, d, hidden) for _ in range(steps))
        self.dt = 1.0 / steps
        for layer in self._layers():
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Where the steps end, (batch, d) -> (batch, d)."""
        return self.path(z)[0][-1]

    def path(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Points before and after every step, and the velocities between, each (batch, d)."""
        points, velocities = [z], []
        for velocity in self.velocities:
            velocities.append(velocity(points[-1]))
            points.append(points[-1] + self.dt * velocities[-1])
        return points, velocities

    @torch.no_grad()
    def back(self, y: Tensor) -> Back:
        """The inverse: every step undone by the fixed point z = y - dt v(z), from z = y - dt v(y) on."""
        worst, most = 0.0, 0
        for velocity in reversed(self.velocities):
            y, moved, count = _undone(velocity, y, self.dt)
            worst, most = max(worst, moved), max(most, count)
        return Back(y, worst, most)

    @torch.no_grad()
    def confine(self, bound: float) -> None:
        """Shrink layers so that dt Lip(v_j) is at most `bound`, every layer bearing the same share.

        A layer's weights of a bounded norm are a convex set, so averages of confined networks are confined, too.
        """
        depth = len(self.velocities[0]) // 2 + 1  # type: ignore[arg-type]
        largest = (bound / self.dt) ** (1 / depth)
        # The Frobenius norm is no smaller and costs nothing.
        for layer in self._layers():
            if layer.weight.norm() > largest and (norm := torch.linalg.matrix_norm(layer.weight, 2)) > largest:
                layer.weight.mul_(largest / norm)

    @torch.no_grad()
    def lipschitz(self) -> float:
        """A bound of dt Lip(v_j), the largest over steps."""
        norms = torch.stack([norms for norms, _ in self._by_depth()])
        return self.dt * float(norms.prod(0).max())

    def _by_depth(self) -> list[tuple[Tensor, list[nn.Linear]]]:
        """Layers at the same depth of all steps, and their spectral norms, shape (steps,)."""
        layers = self._layers()
        depth = len(layers) // len(self.velocities)
        groups = [layers[i::depth] for i in range(depth)]
        return [(torch.linalg.matrix_norm(torch.stack([la.weight for la in own]), 2), own) for own in groups]

    def _layers(self) -> list[nn.Linear]:
        return [layer for velocity in self.velocities for layer in velocity.modules() if isinstance(layer, nn.Linear)]


def _undone(velocity: nn.Module, y: Tensor, dt: float) -> tuple[Tensor, float, int]:
    """The z with z + dt v(z) = y, how far the last iteration moved, and the number of iterations."""
    z = y - dt * velocity(y)
    for count in range(1, MOST_ITERATIONS + 1):
        following = y - dt * velocity(z)
        moved = float((following - z).abs().max()) if len(z) else 0.0
        z = following
        if moved <= ARRIVED or not math.isfinite(moved):
            return z, moved if math.isfinite(moved) else math.inf, count
    return z, moved, MOST_ITERATIONS


def along(points: Sequence[Tensor], t: float) -> Tensor:
    """The point at time t, 0 to 1, of a path of equal time steps: straight between its points, as Euler's is."""
    at = min(max(t, 0.0), 1.0) * (len(points) - 1)
    i = min(int(at), len(points) - 2)
    return torch.lerp(points[i], points[i + 1], at - i)


def kinetic(velocities: Sequence[Tensor], weights: Tensor, p: float = 2.0) -> Tensor:
    r"""Energy :math:`dt \sum_j E \sum_i c_i |v_{j,i}|^p / d`, dt = 1 / number of steps, per coordinate.

    Parameters
    ----------
    velocities
        One for every step, each of shape (batch, d).
    weights
        c, shape (d,).
    p
        Exponent, above 1.
    """
    v = torch.stack(list(velocities))
    powers = v.square() if p == 2 else v.abs().pow(p)
    return (powers * weights).mean()
