"""Convolutional networks on images given as flat rows, with a choice of normalisation.

Normalisation decides whether a map's Jacobian can be sparse. Instance norm divides a channel by its spread over the
whole image, so every output depends on every input, however local the layers are. Channel norm divides each position
by the spread over its own channels: it couples no two positions, and what the convolutions leave local stays local.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, leaky_relu

from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

LOWEST = 4
"""Side of the images' lowest resolution, where content is moved across the image."""

_SLOPE = 0.2
# Added to variances before division.
_FLOOR = 1e-5
# Residual blocks double a variance; dividing by its root keeps the scale of activations.
_HALF = math.sqrt(0.5)


class ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of every position, then a scale and a shift per channel.

    Maps (batch, channels, height, width) to the same shape. Its Jacobian is zero between positions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        return (x - mean) * (variance + _FLOOR).rsqrt() * self.weight + self.bias


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "channel": ChannelNorm,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "none": lambda channels: nn.Identity(),
}
"""Normalisation layers by name; each takes the number of channels."""


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, (batch, n_in, h, w) -> (batch, n_out, h', w').

    Halving is done by the first convolution and doubling before the second, so that most work is at the lower side.

    Parameters
    ----------
    n_in, n_out
        Channels.
    norm
        One of `NORMS`, before every convolution.
    resample
        ``"down"`` halves height and width, ``"up"`` doubles them, ``"none"`` keeps them.
    """

    def __init__(self, n_in: int, n_out: int, norm: str = "none", resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.norm1, self.norm2 = NORMS[norm](n_in), NORMS[norm](n_out)
        kernel, stride = (4, 2) if resample == "down" else (3, 1)
        self.conv1 = nn.Conv2d(n_in, n_out, kernel, stride, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Residual and shortcut, together of the scale of the input."""
        inner, x = _act(self.norm2(self.conv1(_act(self.norm1(x))))), self.shortcut(x)
        if self.resample == "up":
            inner, x = _doubled(inner), _doubled(x)
        elif self.resample == "down":
            x = avg_pool2d(x, 2)
        return (self.conv2(inner) + x) * _HALF


class PositionMap(nn.Module):
    """Every position of the output is a learned weighting of all positions of the input, the same for all channels.

    What a map needs that moves content across the image, as turning it does, and convolutions cannot do. With few
    positions it costs little, and with one large weight a row it is sparse.
    """

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(positions, positions) / math.sqrt(positions))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return (x.flatten(2) @ self.weight.T).view_as(x)


class ImageMap(nn.Module):
    """Encoder and decoder from images to images, as flat rows (batch, size * size); pixels in (-1, 1) by tanh.

    After StarGAN v2, made cheap: a convolution of stride 2, residual blocks that halve the image down to a side of
    `LOWEST` (two for 32 x 32 pixels), residual blocks there, and the same way up. At the lowest resolution a
    `PositionMap` moves content across the image.

    Parameters
    ----------
    size
        Width and height: `LOWEST` doubled once or more.
    width
        Channels at half the side; twice as many below.
    depth
        Residual blocks at the lowest resolution on each side of the position map.
    norm
        One of `NORMS`.
    """

    def __init__(self, size: int, width: int = 16, depth: int = 1, norm: str = "channel") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(f"norm={norm!r} is none of {', '.join(NORMS)}.")
        self.size = size
        widths = _widths(size, width)
        down = [ResidualBlock(a, b, norm, "down") for a, b in pairwise(widths)]
        up = [ResidualBlock(b, a, norm, "up") for a, b in reversed(list(pairwise(widths)))]
        self.net = _fast(
            _stem(width),
            *down,
            *(ResidualBlock(widths[-1], widths[-1], norm) for _ in range(depth)),
            PositionMap(LOWEST**2),
            *(ResidualBlock(widths[-1], widths[-1], norm) for _ in range(depth)),
            *up,
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Map (batch, size * size) to the same shape."""
        return self.net(rows.view(-1, 1, self.size, self.size)).flatten(1).tanh()


class ImageDiscriminator(nn.Module):
    """Tells real images from translations, rows (batch, size * size) -> logits (batch,).

    The encoder of `ImageMap` and a dense layer, with one output for every condition. Without normalisation.

    Parameters
    ----------
    size, width
        As in `ImageMap`.
    n_conditions
        Number of conditions; 0 where none are known.
    """

    def __init__(self, size: int, width: int = 16, n_conditions: int = 0) -> None:
        super().__init__()
        self.size, self.n_conditions = size, n_conditions
        widths = _widths(size, width)
        self.net = _fast(
            _stem(width),
            *(ResidualBlock(a, b, resample="down") for a, b in pairwise(widths)),
            nn.LeakyReLU(_SLOPE),
            nn.Flatten(),
            nn.Linear(widths[-1] * LOWEST**2, 4 * width),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(4 * width, max(n_conditions, 1)),
        )

    def forward(self, rows: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits, positive where a row looks like a real image of its condition."""
        logits = self.net(rows.view(-1, 1, self.size, self.size))
        if condition is None or not self.n_conditions:
            return logits.mean(1)
        return logits.gather(1, condition[:, None]).squeeze(1)


def _fast(*layers: nn.Module) -> nn.Sequential:
    """Layers in sequence, in the memory layout that convolutions and channel norm are fastest in."""
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _stem(width: int) -> nn.Module:
    return nn.Conv2d(1, width, 4, stride=2, padding=1)


def _widths(size: int, width: int) -> list[int]:
    """Channels at half the side, and after every further halving down to `LOWEST`."""
    halvings = int(math.log2(max(size, 1) / LOWEST))
    if halvings < 1 or LOWEST * 2**halvings != size:
        raise ConfigError(f"size={size} must be {LOWEST} doubled once or more: {2 * LOWEST}, {4 * LOWEST}, ...")
    return [width, *[2 * width] * (halvings - 1)]


def _act(x: Tensor) -> Tensor:
    return leaky_relu(x, _SLOPE)


def _doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")
