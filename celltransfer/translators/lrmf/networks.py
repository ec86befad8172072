"""What a likelihood-ratio minimizing flow is made of: the map, the densities, and the scales around them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from celltransfer.nn import flows


class Aligner(nn.Module):
    """The map T, the shared density and the two private ones, and the affine scales around them.

    Densities live in target features brought to unit scale, v = (y - mean_y) W_y^T; source cells enter as
    u = x W_x^T + b_x, and are translated to T(u).
    """

    families: Tensor
    w_x: Tensor
    b_x: Tensor
    w_y: Tensor
    mean_y: Tensor

    def __init__(self, d: int, transform: flows.Invertible, density: flows.Density) -> None:
        super().__init__()
        self.transform, self.shared = transform, density
        self.private_a = copy.deepcopy(density).requires_grad_(False)
        self.private_b = copy.deepcopy(density).requires_grad_(False)
        for name, value in (("w_x", torch.eye(d)), ("b_x", torch.zeros(d))):
            self.register_buffer(name, value)
        for name, value in (("w_y", torch.eye(d)), ("mean_y", torch.zeros(d))):
            self.register_buffer(name, value)
        # Numbers of the families, which a checkpoint is rebuilt by.
        self.register_buffer("families", torch.zeros(2, dtype=torch.long))

    def source(self, x: Tensor) -> Tensor:
        """Source features as T takes them, u."""
        return x @ self.w_x.T + self.b_x

    def target(self, y: Tensor) -> Tensor:
        """Target features at unit scale, v."""
        return (y - self.mean_y) @ self.w_y.T

    def untarget(self, v: Tensor) -> Tensor:
        """Inverse of `target`."""
        return torch.linalg.solve(self.w_y, v.T).T + self.mean_y

    def forward(self, x: Tensor) -> Tensor:
        """Translate (batch, d) to (batch, d)."""
        return self.untarget(self.transform(self.source(x))[0])

    def inverse(self, y: Tensor) -> Tensor:
        """Translate back; the exact inverse of `forward`."""
        u = self.transform.inverse(self.target(y))
        return torch.linalg.solve(self.w_x, (u - self.b_x).T).T
