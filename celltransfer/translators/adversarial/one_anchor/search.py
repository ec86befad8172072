r"""A sparse map from unpaired cells and very few anchors: many starts at once, and the likeliest of where they end.

Everything is in units of twice a log-likelihood, sampling errors squared: how far moments of the translated cells are
from the target's, how far anchors are from their partners, and log n for each entry of the Jacobian. The smallest sum
is the sparsest map among those that match and meet the anchors, as far as so many cells can tell (equation 7 of
single-anchor alignment by Jacobian sparsity). The truth is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from celltransfer.translators.adversarial.one_anchor.assignments import (
    by_components,
    by_features,
    exchanges,
    independent_axes,
    pair_moments,
)
from celltransfer.translators.adversarial.one_anchor.cloud import Cloud, normal_scores
from celltransfer.translators.adversarial.one_anchor.curves import Curves, same_laws
from celltransfer.translators.adversarial.one_anchor.refit import refit
from celltransfer.translators.adversarial.one_anchor.rotations import Rotations
from celltransfer.translators.adversarial.one_anchor.rows import sparse_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Random rotations that are tried beside what rows, features and components propose.
RANDOM = 48
# Rotations that are followed to the end, and those whose exchanges are climbed.
FOLLOWED, CLIMBED = 12, 3
# Rounds of exchanges at most.
ROUNDS = 8
# Entries of a standardised map up to here are none.
LEAST_ENTRY = 0.1
# Weight of the moments when maps are told apart: those that exchange alike components differ by their noise alone.
MOMENT_SHARE = 1 / 3
# Maps that differ by less are one: share of the target's variance.
ALIKE = 0.02
# Times a curve is taken off the target and the map is looked for again.
UNBENT = 2


@dataclass(frozen=True, eq=False)
class Found:
    """A map that `search` found.

    Attributes
    ----------
    weight, offset
        Its linear part, shapes (D, d) and (D,).
    curves
        What outputs go through after it, or ``None``.
    figures
        ``entries`` of the Jacobian; how many squared sampling errors the ``anchors`` are off; and the ``margin``: how
        much less likely (twice the log-likelihood) the likeliest map is that differs by more than `ALIKE`.
    """

    weight: np.ndarray
    offset: np.ndarray
    curves: Curves | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Translate cells, (n, d) -> (n, D)."""
        out = x @ self.weight.T + self.offset
        return out if self.curves is None else self.curves(out)


@dataclass(frozen=True, eq=False)
class _Rated:
    """Maps of standardised features (maps, D, d), and what they cost, (maps,)."""

    weights: np.ndarray
    cost: np.ndarray

    @property
    def best(self) -> np.ndarray:
        return np.asarray(self.weights[self.cost.argmin()])

    def margin(self, correlation: np.ndarray) -> float:
        """How much more the cheapest map costs that is not the best one; infinity without one."""
        apart = self.weights - self.best
        share = np.einsum("mod,de,moe->m", apart, correlation, apart) / apart.shape[1]
        others = self.cost[share > ALIKE]
        return float(others.min() - self.cost.min()) if len(others) else float("inf")


def search(
    x: np.ndarray,
    y: np.ndarray,
    anchor_x: np.ndarray,
    anchor_y: np.ndarray,
    *,
    curved: bool = True,
    noise: float = 0.0,
    seed: int = 0,
) -> Found | None:
    """The sparsest map that matches the cells and meets the anchors.

    Linear maps are rotations of white clouds, from five kinds of starts: rows of one or two entries that covariances
    and the anchor leave, features and independent components that are assigned to each other, random rotations, and
    exchanges of components of the best. Where no linear map gives the outputs their laws, and one followed by monotone
    curves is likelier, it is that.

    Parameters
    ----------
    x, y
        Source cells (n, d) and target cells (m, D).
    anchor_x, anchor_y
        Their anchors, shapes (k, d) and (k, D), k >= 1.
    curved
        Whether outputs may bend.
    noise
        Standard deviation of an anchor's coordinates, in standard deviations of the features.
    seed
        Of the random starts.

    Returns
    -------
    Found or None
        ``None`` where the clouds have different ranks, so that no invertible map connects them.
    """
    source, target = Cloud.of(x, anchor_x), Cloud.of(y, anchor_y)
    if source.white.shape[1] != target.white.shape[1]:
        return None
    rated = _linear(source, target, noise, seed)
    weights, margin = rated.best, rated.margin(source.correlation)
    straight = same_laws(source.cells @ weights.T, target.cells)
    if straight or not curved or source.cells.shape[1] != target.cells.shape[1]:
        return _found(source, target, weights, None, margin, noise)
    bent = _bent(source, target, weights, noise, seed)
    weights, margin = bent.best, bent.margin(source.correlation)
    curves = Curves.between(source.cells @ weights.T, target.cells)
    return _found(source, target, weights, curves, margin, noise)


def _linear(source: Cloud, target: Cloud, noise: float, seed: int) -> _Rated:
    """Linear maps where the starts end, refitted with their support, and exchanges of the best."""
    length = float((source.white_anchors**2).sum(axis=1).mean())
    n = min(len(source.cells), len(target.cells))
    problem = Rotations(source, target, 1.2 * (1 + length / 4) / n + 2 * noise**2, seed)
    ends = problem.weights(_descended(problem, source, target, noise, seed)).double().numpy()
    rated = _rate(ends, problem, source, target, noise)
    moves = exchanges(source.cells.shape[1])
    for _ in range(ROUNDS):
        moved = _rate(rated.best @ moves, problem, source, target, noise)
        done = moved.cost.min() >= rated.cost.min() - 1e-6
        rated = _Rated(np.concatenate([rated.weights, moved.weights]), np.concatenate([rated.cost, moved.cost]))
        if done:
            break
    return rated


def _descended(problem: Rotations, source: Cloud, target: Cloud, noise: float, seed: int) -> Tensor:
    """Rotations where starts of all kinds end, the best of each."""
    proposals = [sparse_rows(source, target, noise)]
    if source.cells.shape[1] == target.cells.shape[1]:
        proposals.append(by_features(source, target, noise, seed))
    near = [problem.rotation(weights) for weights in proposals if len(weights)]
    near.append(torch.as_tensor(by_components(source, target, noise, seed), dtype=torch.float32))
    ends = [
        problem.descend(torch.cat(near), 60, (0.3, 0.1), 0.02),
        problem.descend(problem.random(RANDOM), 150, (1.0, 0.1), 0.05),
    ]
    q, cost = (torch.cat(parts) for parts in zip(*ends, strict=True))
    q = q[cost.argsort()[:FOLLOWED]]
    axes = [np.eye(problem.d), independent_axes(source.white, "cube", seed)]
    q = torch.cat([q, *(_climb(problem, start[None], axes) for start in q[:CLIMBED])])
    return problem.descend(q, 80, (0.1, 0.03), 0.02)[0]


def _climb(problem: Rotations, q: Tensor, axes: list[np.ndarray]) -> Tensor:
    """Exchanges of the source's axes as long as they help, from one rotation (1, r, r)."""
    moves = exchanges(problem.d)
    turns = torch.cat([torch.as_tensor(basis.T @ moves @ basis, dtype=torch.float32) for basis in axes])
    with torch.no_grad():
        best = float(problem.terms(q, 0.1).total)
    for _ in range(ROUNDS):
        near = q @ turns
        with torch.no_grad():
            order = problem.terms(near, 0.3).total.argsort()
        ends, cost = problem.descend(near[order[:8]], 30, (0.2, 0.1), 0.02)
        if float(cost.min()) > best - 1e-3:
            break
        best, q = float(cost.min()), ends[cost.argmin()][None]
    return q


def _rate(weights: np.ndarray, problem: Rotations, source: Cloud, target: Cloud, noise: float) -> _Rated:
    """Maps refitted with their support, and what they cost."""
    fitted = refit(weights, source, target, LEAST_ENTRY, noise)
    with torch.no_grad():
        moments = problem.misfit(problem.rotation(fitted.weights)).double().numpy()
    entries = (fitted.weights != 0).sum(axis=(1, 2))
    cost = MOMENT_SHARE * moments + fitted.covariances + fitted.anchors + np.log(problem.n) * entries
    return _Rated(fitted.weights, cost)


def _bent(source: Cloud, target: Cloud, linear: np.ndarray, noise: float, seed: int) -> _Rated:
    """Maps whose outputs go through monotone curves, rated by what no such curve changes."""
    pool = np.concatenate([linear[None], by_features(source, target, noise, seed)])
    cost = _rank_cost(pool, source, target, noise)
    best = pool[cost.argmin()]
    # Where a signed permutation is likeliest nothing more is to be found: it was not told by what curves change.
    for step in range(UNBENT if (best != 0).sum() > len(best) else 0):
        for unbent in _unbent(source, target, best, first=step == 0):
            again = _linear(source, unbent, noise, seed).best[None]
            pool = np.concatenate([pool, again])
            cost = np.concatenate([cost, _rank_cost(again, source, target, noise)])
        best = pool[cost.argmin()]
    near = best @ exchanges(len(best[0]))
    return _Rated(np.concatenate([pool, near]), np.concatenate([cost, _rank_cost(near, source, target, noise)]))


def _unbent(source: Cloud, target: Cloud, weights: np.ndarray, *, first: bool) -> Iterator[Cloud]:
    """The target without the curves that a linear map leaves, and at first also its normal scores."""
    curves = Curves.between(source.cells @ weights.T, target.cells)
    yield Cloud.of(curves.inverse(target.cells), curves.inverse(target.anchors))
    if first:
        yield Cloud.of(*target.scores)


def _rank_cost(weights: np.ndarray, source: Cloud, target: Cloud, noise: float) -> np.ndarray:
    """What maps cost by the normal scores of their outputs: moments of pairs, anchors and entries."""
    n = min(len(source.cells), len(target.cells))
    scores, partners = target.scores
    wanted, spread = pair_moments(scores)
    variance = 2 * 1.6 * (1 + partners**2 / 2) / n + 2 * noise**2
    costs = []
    for weight in weights:
        made = source.cells @ weight.T
        moments, own = pair_moments(normal_scores(made, made))
        misfit = ((moments - wanted) ** 2 / (own / len(made) + spread / len(scores))[:, None, None]).sum() / 2
        miss = ((normal_scores(made, source.anchors @ weight.T) - partners) ** 2 / variance).sum()
        costs.append(misfit + miss + np.log(n) * (weight != 0).sum())
    return np.array(costs)


def _found(
    source: Cloud, target: Cloud, weights: np.ndarray, curves: Curves | None, margin: float, noise: float
) -> Found:
    """The map in the features as they came."""
    n = min(len(source.cells), len(target.cells))
    made = source.anchors @ weights.T
    made = made if curves is None else curves(made)
    spread = (2 + target.anchors**2 / 2) / n + 2 * noise**2
    miss = float(((made - target.anchors) ** 2 / spread).sum())
    figures = {"entries": float((weights != 0).sum()), "anchors": miss, "margin": margin}
    scaled = weights / source.sd
    if curves is None:
        scaled = scaled * target.sd[:, None]
        return Found(scaled, target.mean - scaled @ source.mean, None, figures)
    shifted = Curves(curves.knots, curves.values * target.sd[:, None] + target.mean[:, None])
    return Found(scaled, -scaled @ source.mean, shifted, figures)
