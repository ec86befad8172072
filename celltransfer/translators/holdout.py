"""Cells held out of distribution matching, and how far translations of them are from true target cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from celltransfer.data.batches import shared_conditions
from celltransfer.data.pair import ModalityPair, dense
from celltransfer.losses.discrepancy import energy_distance

if TYPE_CHECKING:
    from collections.abc import Callable

# Cells a side that are held out, at most and at least; the cost of comparing them is quadratic.
MOST_CELLS, FEWEST_CELLS = 500, 10
# Random halves of the held-out target cells from which the distance's sampling error is estimated.
HALVES = 20
# Fewest cells that can be halved, and cells of a condition at most that are where fewer are held out.
HALVED, MOST_ALIKE = 4, 20


@dataclass(frozen=True)
class Split:
    """Rows of both sides to match with, and rows held out; anchors are never held out."""

    train_x: np.ndarray
    train_y: np.ndarray
    held_x: np.ndarray
    held_y: np.ndarray


def split(pair: ModalityPair, rng: np.random.Generator, share: float = 0.1) -> Split:
    """Hold a share of each condition's cells out, `MOST_CELLS` a side at most."""
    codes_x, codes_y = condition_codes(pair)
    train_x, held_x = _hold_out(codes_x, pair.anchors[:, 0], rng, share)
    train_y, held_y = _hold_out(codes_y, pair.anchors[:, 1], rng, share)
    return Split(train_x, train_y, held_x, held_y)


class HeldOut:
    """Held-out cells of both sides, by condition, scaled as the networks see them.

    Parameters
    ----------
    pair
        The cells.
    rows
        Which of them are held out.
    source, target
        Scale cells of either side.
    device
        Where to keep the cells.
    """

    def __init__(
        self,
        pair: ModalityPair,
        rows: Split,
        source: Callable[[Tensor], Tensor],
        target: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        codes_x, codes_y = condition_codes(pair)
        self.groups: list[tuple[float, Tensor, Tensor]] = []
        # Target cells of one law that the sampling error is from: the held-out ones, or more where these are too few.
        self._alike: list[Tensor] = []
        for code, share in zip(*shared_conditions(codes_x, codes_y), strict=True):
            own = rows.held_x[codes_x[rows.held_x] == code], rows.held_y[codes_y[rows.held_y] == code]
            if min(map(len, own)) >= 2:
                alike = own[1] if len(own[1]) >= HALVED else _some(np.flatnonzero(codes_y == code), MOST_ALIKE)
                x, y, z = (
                    torch.as_tensor(dense(m[r]), device=device)
                    for m, r in ((pair.x, own[0]), (pair.y, own[1]), (pair.y, alike))
                )
                self.groups.append((float(share), source(x), target(y)))
                self._alike.append(target(z))

    @property
    def n_cells(self) -> int:
        """Cells a side that are compared."""
        return sum(min(len(x), len(y)) for _, x, y in self.groups)

    @property
    def enough(self) -> bool:
        """Whether there are cells enough to compare."""
        return self.n_cells >= FEWEST_CELLS

    def distance(self, f: Callable[[Tensor], Tensor]) -> float:
        """Energy distance between f(x) and y; with conditions, the mean of the distances within them."""
        return float(sum(share * energy_distance(f(x), y) for share, x, y in self.groups))

    def sampling_error(self, generator: torch.Generator) -> float:
        """Standard deviation of the distance between samples of these sizes from one law, the target's.

        From random halves of the held-out target cells (of a condition with fewer than four of them, of the target
        cells that are trained on, too): the distance spreads as the sum of both sides' 1 / size.
        """
        return float(torch.tensor([self._between_halves(generator) for _ in range(HALVES)]).std())

    def source_cells(self, n: int) -> Tensor:
        """About `n` held-out source cells, of all conditions alike, shape (<= n, d)."""
        cells = torch.cat([x for _, x, _ in self.groups])
        return cells[:: max(1, len(cells) // n)][:n] if len(self.groups) > 1 else cells[:n]

    def _between_halves(self, generator: torch.Generator) -> float:
        """Distance between halves of the target cells, scaled to the sizes that `distance` compares."""
        total = 0.0
        for (share, x, y), alike in zip(self.groups, self._alike, strict=True):
            n = len(alike)
            order = torch.randperm(n, generator=generator, device=y.device)
            between = float(energy_distance(alike[order[: n // 2]], alike[order[n // 2 :]]))
            total += share * between * (1 / len(x) + 1 / len(y)) / (4 / n)
        return total


def condition_codes(pair: ModalityPair) -> tuple[np.ndarray, np.ndarray]:
    """Condition codes of both sides; one condition for all cells where none are given."""
    if pair.condition_x is None or pair.condition_y is None:
        return np.zeros(pair.n_source, np.int64), np.zeros(pair.n_target, np.int64)
    return np.asarray(pair.condition_x), np.asarray(pair.condition_y)


def _some(rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the rows, from all over."""
    return rows[:: max(1, len(rows) // n)][:n]


def _hold_out(
    codes: np.ndarray, anchors: np.ndarray, rng: np.random.Generator, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out: the share `most` of each condition's cells that are no anchors.

    Together at most `MOST_CELLS`, but two of a condition that has them, so that every one can be compared.
    """
    free = rng.permutation(np.setdiff1d(np.arange(len(codes)), anchors))
    share = min(most, MOST_CELLS / max(len(free), 1))
    groups = [free[codes[free] == code] for code in np.unique(codes)]
    sizes = [max(int(share * len(group)), min(2, len(group) // 10)) for group in groups]
    held = np.concatenate([group[:size] for group, size in zip(groups, sizes, strict=True)])
    return np.setdiff1d(np.arange(len(codes)), held), held
