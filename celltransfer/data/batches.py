"""Minibatches that say what they are: independent unpaired draws {x, y} and anchor pairs {xa, ya}.

Source and target rows are drawn by generators of their own. Walking both modalities in one order would hand the
discriminator aligned cells wherever the two matrices happen to list co-assayed cells alike: a leak of the pairing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConditionError

# Dense features up to this many bytes are copied to the training device once; larger ones stay in host memory.
RESIDENT_BYTES = 2**31


@dataclass(frozen=True)
class Batch:
    """One minibatch.

    Attributes
    ----------
    x, y
        Unpaired source and target cells, shapes (batch, d) and (batch, D); row i of one has nothing to do with row i
        of the other, beyond sharing its condition where conditions are known.
    xa, ya
        Anchor pairs, shapes (k, d) and (k, D); k may be 0.
    condition, condition_a
        Condition codes of the rows of `x` (and of `y`), shape (batch,), and of the anchors, shape (k,); or ``None``.
    """

    x: Tensor
    y: Tensor
    xa: Tensor
    ya: Tensor
    condition: Tensor | None = None
    condition_a: Tensor | None = None


class Batches:
    """Endless minibatches of a `ModalityPair`, on one device.

    Every side walks through random permutations of its rows, one after the other, so each cell is seen equally often.
    With conditions, a batch's condition mix is drawn first and both sides fill it, so that x and y are compared within
    conditions only; cells whose condition the other modality lacks have no counterpart and are not drawn.

    Parameters
    ----------
    pair
        The cells. CSR features stay sparse and are densified batch by batch.
    batch_size
        Unpaired cells a side, and the most anchor pairs, in one batch.
    seed
        Seed of all draws.
    device
        Where batches are delivered.
    rows_x, rows_y
        Rows to draw unpaired cells from; all by default. Anchors are always drawn from all of ``pair.anchors``.
    """

    def __init__(
        self,
        pair: ModalityPair,
        batch_size: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rows_x: np.ndarray | None = None,
        rows_y: np.ndarray | None = None,
    ) -> None:
        seeds = np.random.SeedSequence(seed).spawn(4)
        all_x = np.arange(pair.n_source) if rows_x is None else rows_x
        all_y = np.arange(pair.n_target) if rows_y is None else rows_y
        self.batch_size, self.device = batch_size, torch.device(device)
        self._x, self._y = _Features(pair.x, self.device), _Features(pair.y, self.device)
        self._anchors = pair.anchors
        self._condition = pair.condition_x
        self._mix = _Mix(pair, all_x, all_y, seeds[3]) if pair.condition_x is not None else None
        groups_x, groups_y = ([all_x], [all_y]) if self._mix is None else (self._mix.groups_x, self._mix.groups_y)
        self._draw_x = [_Cycle(group, s) for group, s in zip(groups_x, seeds[0].spawn(len(groups_x)), strict=True)]
        self._draw_y = [_Cycle(group, s) for group, s in zip(groups_y, seeds[1].spawn(len(groups_y)), strict=True)]
        self._draw_anchors = _Cycle(np.arange(pair.n_anchors), seeds[2])

    def draw(self) -> Batch:
        """The next minibatch."""
        size = self.batch_size
        counts = np.array([size]) if self._mix is None else self._mix.draw(size)
        rows_x = _fill(self._draw_x, counts)
        rows_y = _fill(self._draw_y, counts)
        pairs = self._anchors[self._draw_anchors.draw(size)]
        return Batch(
            x=self._x[rows_x],
            y=self._y[rows_y],
            xa=self._x[pairs[:, 0]],
            ya=self._y[pairs[:, 1]],
            condition=self._codes(rows_x),
            condition_a=self._codes(pairs[:, 0]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Position of every draw, as plain types."""
        return {str(i): cycle.state_dict() for i, cycle in enumerate(self._draws())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from where `state_dict` was taken."""
        for i, cycle in enumerate(self._draws()):
            cycle.load_state_dict(state[str(i)])

    def _draws(self) -> list[_Cycle | _Mix]:
        mixes = [] if self._mix is None else [self._mix]
        return [*self._draw_x, *self._draw_y, self._draw_anchors, *mixes]

    def _codes(self, rows: np.ndarray) -> Tensor | None:
        if self._condition is None:
            return None
        return torch.as_tensor(np.asarray(self._condition)[rows], dtype=torch.long, device=self.device)


class _Features:
    """Rows of a matrix as float32 tensors on the device."""

    def __init__(self, matrix: Matrix, device: torch.device) -> None:
        self.device = device
        resident = not sp.issparse(matrix) and matrix.nbytes <= RESIDENT_BYTES
        self.values = torch.as_tensor(matrix, device=device) if resident else matrix

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        if isinstance(self.values, Tensor):
            return self.values[torch.as_tensor(rows, device=self.device)]
        return torch.as_tensor(dense(self.values[rows]), device=self.device)


class _Cycle:
    """Draws from a set of rows by walking through permutations of it; at most one pass per draw."""

    def __init__(self, rows: np.ndarray, seed: np.random.SeedSequence) -> None:
        self.rows = rows
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.order, self.position = self.rng.permutation(len(rows)), 0

    def draw(self, size: int) -> np.ndarray:
        """`size` rows, or all of them where there are fewer."""
        size = min(size, len(self.rows))
        taken = self.order[self.position : self.position + size]
        self.position += len(taken)
        if len(taken) < size:
            self.order, self.position = self.rng.permutation(len(self.rows)), size - len(taken)
            taken = np.concatenate([taken, self.order[: self.position]])
        return self.rows[taken]

    def state_dict(self) -> dict[str, Any]:
        return {"rng": _plain(self.rng), "order": torch.as_tensor(self.order), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = np.asarray(state["order"]), int(state["position"])
        _restore(self.rng, state["rng"])


class _Mix:
    """How many cells of each condition a batch holds, and the rows of each condition on both sides."""

    def __init__(
        self, pair: ModalityPair, rows_x: np.ndarray, rows_y: np.ndarray, seed: np.random.SeedSequence
    ) -> None:
        codes_x, codes_y = np.asarray(pair.condition_x)[rows_x], np.asarray(pair.condition_y)[rows_y]
        shared, self.share = shared_conditions(codes_x, codes_y)
        self.groups_x = [rows_x[codes_x == code] for code in shared]
        self.groups_y = [rows_y[codes_y == code] for code in shared]
        self.largest = np.minimum([len(g) for g in self.groups_x], [len(g) for g in self.groups_y])
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def draw(self, size: int) -> np.ndarray:
        """Cells of each condition, the same numbers for both sides."""
        return np.minimum(self.rng.multinomial(size, self.share), self.largest)

    def state_dict(self) -> dict[str, Any]:
        return {"rng": _plain(self.rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _restore(self.rng, state["rng"])


def shared_conditions(codes_x: np.ndarray, codes_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes that occur on both sides, and the share of a batch that each makes up: the mean of its shares of both."""
    shared = np.intersect1d(codes_x, codes_y)
    if not len(shared):
        raise ConditionError("The source and target cells share no condition, so nothing can be matched within one.")
    share = sum((codes == shared[:, None]).mean(axis=1) for codes in (codes_x, codes_y))
    return shared, share / np.sum(share)


def _fill(cycles: list[_Cycle], counts: np.ndarray) -> np.ndarray:
    return np.concatenate([cycle.draw(int(count)) for cycle, count in zip(cycles, counts, strict=True)])


def _plain(rng: np.random.Generator) -> dict[str, Any]:
    """State of a PCG64 generator; its 128-bit integers as text, which every loader can read."""
    state: dict[str, Any] = dict(rng.bit_generator.state)
    words = {name: str(value) for name, value in state["state"].items()}
    return {"words": words, "has_uint32": int(state["has_uint32"]), "uinteger": int(state["uinteger"])}


def _restore(rng: np.random.Generator, plain: dict[str, Any]) -> None:
    words = {name: int(value) for name, value in plain["words"].items()}
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": words,
        "has_uint32": plain["has_uint32"],
        "uinteger": plain["uinteger"],
    }
