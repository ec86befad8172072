r"""Rotations between two white clouds, found from many starts at once without looking at cells again.

A linear map that matches the covariances of the cells is a rotation of the white source onto the white target. Which
one is left to the third and fourth moments, to the anchors and to the sparsity of the map. Moments are tensors, and a
rotation acts on them as it acts on cells, so that a start costs d^5 and not n d^2 a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from celltransfer.translators.adversarial.one_anchor.cloud import Cloud

# Cells further out than this share of them are drawn in, in all directions alike: it keeps moments of heavy tails.
INNER = 0.95
# Weight of the moments against their nominal sampling error: their entries depend on each other.
MOMENT_WEIGHT = 0.3
# Moments of which less than this share is more than noise are left out.
LEAST_INFORMATION = 0.05
# Entries of a standardised map that are smaller than so many sampling errors cost little.
FLOOR = 4.0
# Adam's rates for directions and their squares.
DECAY, SQUARE_DECAY = 0.9, 0.95


@dataclass(frozen=True, eq=False)
class Terms:
    """What is minimised, for every rotation, in units of twice a log-likelihood; shapes (batch,)."""

    moments: Tensor
    anchors: Tensor
    support: Tensor

    @property
    def total(self) -> Tensor:
        """The sum."""
        return self.moments + self.anchors + self.support


class Rotations:
    """The problem of finding the rotation, for two clouds of equal rank.

    Parameters
    ----------
    source, target
        The clouds.
    anchor_variance
        Sampling variance of a white coordinate of an anchor.
    seed
        Of the random starts.
    """

    def __init__(self, source: Cloud, target: Cloud, anchor_variance: float, seed: int) -> None:
        self.d = source.white.shape[1]
        self.generator = torch.Generator().manual_seed(seed)
        self.n = min(len(source.cells), len(target.cells))
        self.floor = FLOOR * math.sqrt(2 / self.n)
        self._left, self._right = _tensor(target.factor), _tensor(source.whitener)
        self._a, self._b = _tensor(source.white_anchors), _tensor(target.white_anchors)
        self._variance = anchor_variance
        found = [_moments(side.white) for side in (source, target)]
        moments, noises = [side[:2] for side in found], [side[2:] for side in found]
        weights = [MOMENT_WEIGHT * share for share in self._information(source.white, seed)]
        # Every entry of a symmetric tensor occurs up to 3! = 6 or, in one of pairs, 8 times.
        self._parts: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, float]] = [
            (rotate, moments[0][i], moments[1][i], weight / (times * (noises[0][i] + noises[1][i])))
            for i, (rotate, times, weight) in enumerate(zip((rotate3, rotate4), (6.0, 8.0), weights, strict=True))
            if weight > MOMENT_WEIGHT * LEAST_INFORMATION
        ]

    @property
    def informative(self) -> bool:
        """Whether the cells' law tells rotations apart beyond its covariances."""
        return bool(self._parts)

    def weights(self, q: Tensor) -> Tensor:
        """The maps of standardised features that rotations (batch, r, r) are, shape (batch, D, d)."""
        return self._left @ q @ self._right

    def rotation(self, weights: np.ndarray) -> Tensor:
        """The rotations nearest to maps of standardised features, shape (batch, D, d) -> (batch, r, r)."""
        left, right = torch.linalg.pinv(self._left.double()), torch.linalg.pinv(self._right.double())
        u, _, v = torch.linalg.svd(left @ torch.as_tensor(weights, dtype=torch.float64) @ right)
        return (u @ v).float()

    def misfit(self, q: Tensor) -> Tensor:
        """How far the moments of the turned source are from the target's, (batch,)."""
        total = torch.zeros(len(q))
        for rotate, own, other, weight in self._parts:
            total = total + weight * (rotate(q, own) - other).square().flatten(1).sum(dim=1)
        return total

    def terms(self, q: Tensor, width: float) -> Terms:
        """All terms; entries count towards the support from about `width` on."""
        width = max(width, self.floor)
        square = self.weights(q).square()
        soft = min(1.0, (width - self.floor) / 0.3)
        counted = soft * square / (square + width**2)
        # Close to the floor noise should cost next to nothing, which the square alone does not give.
        counted = counted + (1 - soft) * square.square() / (square.square() + width**4)
        miss = (self._a @ q.mT - self._b).square().flatten(1).sum(dim=1) / self._variance
        return Terms(self.misfit(q), miss, math.log(self.n) * counted.flatten(1).sum(dim=1))

    def random(self, n: int) -> Tensor:
        """Random rotations and reflections that take the anchors to their partners, shape (n, r, r)."""
        q = torch.linalg.qr(torch.randn(n, self.d, self.d, generator=self.generator))[0]
        between = torch.einsum("ki,bkj->bij", self._b, self._a @ q.mT) + 1e-2 * torch.eye(self.d)
        u, _, v = torch.linalg.svd(between)
        return u @ v @ q

    def descend(self, q: Tensor, steps: int, widths: tuple[float, float], rate: float) -> tuple[Tensor, Tensor]:
        """Adam along the rotations from every start at once, `widths` shrinking; the rotations and their totals."""
        first, second = torch.zeros_like(q), torch.zeros(len(q), 1, 1)
        one = torch.eye(self.d)
        for i in range(steps):
            width = widths[0] * (widths[1] / widths[0]) ** (i / max(steps - 1, 1))
            q = q.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.terms(q, width).total.sum(), q)
            q = q.detach()
            turn = q.mT @ slope
            turn = (turn - turn.mT) / 2
            first = DECAY * first + (1 - DECAY) * turn
            second = SQUARE_DECAY * second + (1 - SQUARE_DECAY) * turn.square().sum((1, 2), keepdim=True) / self.d
            scaled = first / (1 - DECAY ** (i + 1)) / ((second / (1 - SQUARE_DECAY ** (i + 1))).sqrt() + 1e-12)
            half = (rate * (1 - i / steps) + 1e-3) * scaled / 2
            q = q @ torch.linalg.solve(one + half, one - half)  # Cayley: stays a rotation
        u, _, v = torch.linalg.svd(q)
        with torch.no_grad():
            return u @ v, self.terms(u @ v, widths[1]).total

    def _information(self, white: np.ndarray, seed: int) -> list[float]:
        """Share of what third and fourth moments change by under random rotations that is more than noise, 0 to 1."""
        halves = np.array_split(np.random.default_rng(seed).permutation(len(white)), 2)
        one, other = (_moments(white[half])[:2] for half in halves)
        q = torch.linalg.qr(torch.randn(16, self.d, self.d, generator=self.generator))[0]
        shares = []
        for i, rotate in enumerate((rotate3, rotate4)):
            noise = float((one[i] - other[i]).square().sum())
            turned = float((rotate(q, one[i]) - other[i]).square().flatten(1).sum(dim=1).mean())
            # Halves have twice the variance of the whole.
            shares.append(max(0.0, turned - noise) / max(turned - noise / 2, 1e-12))
        return shares


def rotate3(q: Tensor, t: Tensor) -> Tensor:
    """A tensor (d, d, d) in turned coordinates, for rotations (batch, d, d)."""
    return torch.einsum("bil,bjm,bkn,lmn->bijk", q, q, q, t)


def rotate4(q: Tensor, t: Tensor) -> Tensor:
    """A tensor (d, d, d, d) that is symmetric in the first and the second pair, in turned coordinates."""
    d, n = len(t), len(q)
    first = (q @ t.reshape(d, -1)).reshape(n, d, d, d * d)
    pairs = torch.einsum("bij,bkjm->bkim", q, first).reshape(n, d * d, d, d)
    return (q[:, None] @ pairs @ q[:, None].mT).reshape(n, d, d, d, d)


def _moments(white: np.ndarray) -> tuple[Tensor, Tensor, float, float]:
    """Third moments, covariances of pairs, and the sampling variances of an entry of either."""
    n, d = white.shape
    length = np.sqrt((white**2).sum(axis=1, keepdims=True))
    cells = white * np.minimum(1, np.quantile(length, INNER) / np.maximum(length, 1e-12))
    pairs = (cells[:, :, None] * cells[:, None]).reshape(n, -1)
    third, squares = pairs.T @ cells / n, pairs**2
    centred = pairs - pairs.mean(axis=0)
    fourth = centred.T @ centred / n
    variance3 = (squares.T @ cells**2 / n).mean() - (third**2).mean()
    variance4 = (squares.T @ squares / n).mean() - (fourth**2).mean()
    shapes = (d, d, d), (d, d, d, d)
    return _tensor(third.reshape(shapes[0])), _tensor(fourth.reshape(shapes[1])), variance3 / n, variance4 / n


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32)
