"""Multi-scale flows on images given as flat rows: a density, and an invertible map from images to images.

A scale puts every 2 x 2 pixels into channels, applies blocks of act norm, a mixing of the channels and an affine
coupling whose network is convolutional, and lets go half of the channels, which are normalised given the other half.
All layers start at the identity, but for a fixed permutation of the channels. At the end, every latent variable has a
shift and a scale of its own, so that a density starts as good as independent normal laws.

References
----------
Kingma & Dhariwal 2018, Glow: generative flow with invertible 1x1 convolutions, NeurIPS.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pixel_shuffle, pixel_unshuffle

from celltransfer.errors import ConfigError
from celltransfer.nn.flows import Density, Invertible

# Log scales of couplings lie between minus and plus this.
_BOUND = 2.0
# Spreads below this, in units of the data, are not blown up by the start of an act norm.
_FLOOR = 1e-2
# Images that start act norms, at most.
_START = 1024


class GlowDensity(Density):
    """Density of images, whose flow maps pixels to independent standard normal latent variables.

    Parameters
    ----------
    side
        Width and height, a multiple of 2 to the power of `scales`.
    channels
        Colours; rows hold them one after the other, each as its pixels row by row.
    scales
        Resolutions; each has half the side of the one before.
    blocks
        Act norm, mixing and coupling, so many times at each scale.
    width
        Channels of the two hidden layers of a coupling's network.

    Raises
    ------
    ConfigError
        A number is below 1, or the side cannot be halved that often.
    """

    def __init__(self, side: int, *, channels: int = 1, scales: int = 3, blocks: int = 8, width: int = 64) -> None:
        super().__init__()
        self.flow = _Flow(side, channels, scales, blocks, width)

    @torch.no_grad()
    def solve(self, x: Tensor) -> None:
        """Start from images (n, d): set every act norm so that what leaves it has mean 0 and variance 1."""
        norms = [module for module in self.modules() if isinstance(module, _ActNorm)]
        for norm in norms:
            norm.starting = True
        self.flow(x[:: -(-len(x) // _START)])
        for norm in norms:
            norm.starting = False

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (batch,) of rows (batch, channels * side^2)."""
        z, log_det = self.flow(x)
        return log_det - (z.square() + math.log(2 * math.pi)).sum(1) / 2

    def encode(self, x: Tensor) -> Tensor:
        """The standard normal values z that stand for images, same shape."""
        return self.flow(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Inverse of `encode`."""
        return self.flow.inverse(z)[0]

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw (n, channels * side^2), by torch's global generator."""
        own = next(self.parameters())
        return self.decode(torch.randn(n, self.flow.d, device=own.device, dtype=own.dtype))


class GlowTransform(Invertible):
    r"""Invertible map of images, :math:`T = g^{-1} \circ f` with two flows f and g: pixels to latents to pixels.

    Both have the same weights at first, so that T is the identity. Parameters are those of `GlowDensity`.
    """

    def __init__(self, side: int, *, channels: int = 1, scales: int = 3, blocks: int = 8, width: int = 64) -> None:
        super().__init__()
        self.first = _Flow(side, channels, scales, blocks, width)
        self.second = copy.deepcopy(self.first)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows (batch, channels * side^2) to rows; with the log determinants of the Jacobians (batch,)."""
        z, first = self.first(x)
        y, second = self.second.inverse(z)
        return y, first + second

    def inverse(self, y: Tensor) -> Tensor:
        """Map images back, same shape."""
        return self.first.inverse(self.second(y)[0])[0]


class _Flow(nn.Module):
    """Rows of pixels to rows of latent variables and back, each with its log determinant."""

    def __init__(self, side: int, channels: int, scales: int, blocks: int, width: int) -> None:
        super().__init__()
        if min(side, channels, scales, blocks, width) < 1 or side % 2**scales:
            got = f"{side=}, {channels=}, {scales=}, {blocks=}, {width=}"
            raise ConfigError(f"{got}: each must be at least 1, and the side a multiple of 2 to the power of scales.")
        self.d, self.shape = channels * side**2, (channels, side, side)
        self.scales, self.latent = _Scale(self.shape, scales, blocks, width), _ActNorm(self.d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of pixels (batch, d) to latents (batch, d), and log determinants (batch,)."""
        z, first = self.scales(x.view(-1, *self.shape))
        z, second = self.latent(z)
        return z, first + second

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (batch, d) to rows of pixels (batch, d), and log determinants of this map (batch,)."""
        z, second = self.latent.inverse(z)
        x, first = self.scales.inverse(z)
        return x.flatten(1), first + second


class _Scale(nn.Module):
    """One resolution and all below it: images (batch, *shape) to rows of latents, in the order they are let go."""

    def __init__(self, shape: tuple[int, int, int], scales: int, blocks: int, width: int) -> None:
        super().__init__()
        channels, height, side = 4 * shape[0], shape[1] // 2, shape[2] // 2
        self.squeezed = (channels, height, side)
        layers: list[nn.Module] = []
        for _ in range(blocks):
            layers += [_ActNorm(channels, 1, 1), _Mixing(channels), _Coupling(channels, width)]
        self.below = None
        if scales > 1:
            layers.append(_Coupling(channels, width))
            self.below = _Scale((channels // 2, height, side), scales - 1, blocks, width)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, log_det = pixel_unshuffle(x, 2), x.new_zeros(len(x))
        for layer in self.layers:
            h, more = layer(h)
            log_det = log_det + more
        if self.below is None:
            return h.flatten(1), log_det
        h, gone = h.chunk(2, 1)
        z, more = self.below(h)
        return torch.cat([gone.flatten(1), z], 1), log_det + more

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(len(z))
        if self.below is not None:
            gone, z = z.chunk(2, 1)
            z, log_det = self.below.inverse(z)
            z = torch.cat([z.flatten(1), gone], 1)
        h = z.view(-1, *self.squeezed)
        for layer in reversed(self.layers):
            h, more = layer.inverse(h)  # type: ignore[operator]
            log_det = log_det + more
        return pixel_shuffle(h, 2), log_det


class _ActNorm(nn.Module):
    """y = exp(s) x + b, with s and b of a shape that broadcasts to that of a sample."""

    starting = False

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.log_scale, self.shift = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.starting:
            self._start(x)
        return x * self.log_scale.exp() + self.shift, self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) * (-self.log_scale).exp(), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.log_scale.sum() * (x[0].numel() // self.log_scale.numel())

    def _start(self, x: Tensor) -> None:
        """Set s and b so that this batch leaves with mean 0 and variance 1 wherever there is one s and b."""
        over = [0, *(i for i, n in enumerate(self.shift.shape, 1) if n == 1)]
        variance, mean = torch.var_mean(x, over, correction=0)
        scale = variance.sqrt().clamp(min=_FLOOR).reciprocal().view_as(self.shift)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-scale * mean.view_as(scale))


class _Mixing(nn.Module):
    """1 x 1 convolution with the matrix P L U, which starts at a random permutation P; U has a positive diagonal."""

    order: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))
        # Both triangles without their diagonals; that of L is 1.
        self.triangles = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        return conv2d(x, (lower @ upper)[self.order, :, None, None]), self.log_diagonal.sum() * x[0, 0].numel()

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        unpermuted = torch.eye(len(self.order), device=y.device, dtype=y.dtype)[:, self.order]
        half = torch.linalg.solve_triangular(lower, unpermuted, upper=False, unitriangular=True)
        matrix = torch.linalg.solve_triangular(upper, half, upper=True)
        return conv2d(y, matrix[:, :, None, None]), -self.log_diagonal.sum() * y[0, 0].numel()

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.triangles.tril(-1) + torch.eye(len(self.order), device=self.triangles.device)
        return lower, self.triangles.triu(1) + self.log_diagonal.exp().diag()


class _Coupling(nn.Module):
    """Half of the channels gets a scale and a shift, per pixel, from a network that sees the other half."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        first = nn.Conv2d(channels // 2, width, 3, padding=1)
        self.net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, 1)
        log_scale, shift = self._terms(kept)
        return torch.cat([kept, moved * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = y.chunk(2, 1)
        log_scale, shift = self._terms(kept)
        return torch.cat([kept, (moved - shift) * (-log_scale).exp()], 1), -log_scale.flatten(1).sum(1)

    def _terms(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(kept).chunk(2, 1)
        return _BOUND * torch.tanh(raw / _BOUND), shift
