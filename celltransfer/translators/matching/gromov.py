"""Fused Gromov-Wasserstein with anchors: match the shapes of two clouds of cells, then learn to extend the match."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConfigError
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Arrays, Translator, register
from celltransfer.translators.regression import linear_map, ridge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celltransfer.train.loop import Trainer

# Iterations between looks at the clock, where there is a time limit.
TIMED_ITERATIONS = 3


@dataclass(frozen=True)
class Plan:
    """A plan, shape (n, m), its objective, whether it converged, and after how many iterations."""

    plan: np.ndarray
    objective: float
    converged: bool
    n_iter: int


@register
class FusedGromov(Translator):
    r"""Fused Gromov-Wasserstein between kNN-graph geodesics, with distances to the anchors as linear cost.

    .. math::
        \min_P (1 - \alpha) \sum_{ij} M_{ij} P_{ij}
        + \alpha \sum_{ijkl} (C^x_{ik} - C^y_{jl})^2 P_{ij} P_{kl}

    C holds hop counts in a modality's kNN graph (mean 1 after scaling), which forgive what differs in density; M_ij
    is the mean squared difference of the distances of cell i and cell j to the same anchors, and anchors are pinned to
    their partners. Solved in float64 on a subsample that keeps the anchors, by conditional gradient or, with
    `epsilon` > 0, with an entropic penalty by projected gradient; from several starts where anchors cannot break the
    symmetries, and the lowest objective wins. Without anchors, alpha is 1 and mirror images of the truth are equally
    good: do not believe such a fit unseen.

    New cells: every subsampled source cell gets its barycentric target (anchors their partner), and these soft pairs
    train a ridge regression with leave-one-out penalty (``extension="ridge"``) or are averaged over the nearest
    subsampled source cells (``extension="knn"``).

    References: Vayer et al. 2020 (fused GW); Demetci et al. 2022 (hop counts, SCOT); Flamary et al. 2021 (POT).

    Parameters
    ----------
    alpha
        Weight of the shapes against the anchors' cost, in (0, 1].
    n_neighbors
        Neighbours in the graphs.
    max_cells
        Cells a side in the quadratic problem, anchors included; memory is about 50 max_cells^2 bytes.
    n_starts
        Starts with fewer than 2 anchors; 1 otherwise. (A verdict's refits keep 2 or more, and so fit as the fit did.)
    epsilon
        Weight of the entropy of the plan; 0 solves the problem without.
    max_iter, tol
        Limit and relative tolerance of the iterations.
    extension
        ``"ridge"`` or ``"knn"``.
    """

    name = "fgw"
    matches_distributions = True

    def __init__(
        self,
        *,
        alpha: float = 0.2,
        n_neighbors: int = 15,
        max_cells: int = 1000,
        n_starts: int = 4,
        epsilon: float = 0.0,
        max_iter: int = 100,
        tol: float = 1e-5,
        extension: str = "ridge",
    ) -> None:
        self.alpha, self.n_neighbors, self.max_cells, self.n_starts = alpha, n_neighbors, max_cells, n_starts
        self.epsilon, self.max_iter, self.tol = epsilon, max_iter, tol
        self.extension = extension

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        clock = Clock(trainer.max_seconds if trainer else None)
        self._check()
        rng = np.random.default_rng(seed)
        k = min(pair.n_anchors, self.max_cells)
        x, y = (
            _subsample(pair.x, pair.anchors[:k, 0], self.max_cells, rng),
            _subsample(pair.y, pair.anchors[:k, 1], self.max_cells, rng),
        )
        cost_x, cost_y = geodesics(x, self.n_neighbors), geodesics(y, self.n_neighbors)
        plans, timed_out = self._plans(cost_x, cost_y, k, rng, clock)
        best = min(plans, key=lambda plan: plan.objective)
        targets = best.plan @ y / best.plan.sum(axis=1, keepdims=True)
        targets[:k] = y[:k]
        self._extend(x, targets)
        return FitResult(
            Status.MAX_TIME if timed_out else Status.CONVERGED if best.converged else Status.MAX_STEPS,
            n_steps=best.n_iter,
            seconds=clock.elapsed(),
            history={"objective": [(i, plan.objective) for i, plan in enumerate(plans)]},
            versions={"pot": version("pot")},
        )

    def _check(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha}; the weight of the shapes is in (0, 1].")
        if self.epsilon < 0:
            raise ConfigError(f"epsilon={self.epsilon}; the weight of the entropy is not negative.")
        if self.extension not in {"ridge", "knn"}:
            raise ConfigError(f"extension={self.extension!r}; it is 'ridge' or 'knn'.")

    def _starts(self, cost_x: np.ndarray, cost_y: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The independent plan, then optimal matches of random landmarks' profiles."""
        yield np.full((len(cost_x), len(cost_y)), 1 / (len(cost_x) * len(cost_y)))
        while True:
            marks_x, marks_y = rng.choice(len(cost_x), 3), rng.choice(len(cost_y), 3)
            yield _match(anchor_cost(cost_x[:, marks_x], cost_y[:, marks_y]))

    def _plans(
        self, cost_x: np.ndarray, cost_y: np.ndarray, k: int, rng: np.random.Generator, clock: Clock
    ) -> tuple[list[Plan], bool]:
        """A plan from every start, from fewer (at least one) where time runs out; and whether it did."""
        n_starts = 1 if k >= 2 else max(1, self.n_starts)
        plans: list[Plan] = []
        for first in self._starts(cost_x, cost_y, rng):
            plans.append(self._solve(cost_x, cost_y, k, first, Clock(clock.share(n_starts - len(plans)))))
            if len(plans) == n_starts or clock.left() == 0:
                break
        return plans, clock.left() == 0 and not (len(plans) == n_starts and plans[-1].converged)

    def _solve(self, cost_x: np.ndarray, cost_y: np.ndarray, k: int, first: np.ndarray, clock: Clock) -> Plan:
        """Iterate until convergence or a limit. Iterations remember the plan alone, so they can be done in parts."""
        size = self.max_iter if clock.left() == np.inf else TIMED_ITERATIONS
        plan = self._iterate(cost_x, cost_y, k, first, min(size, self.max_iter))
        while not plan.converged and plan.n_iter < self.max_iter and clock.left() > 0:
            more = self._iterate(cost_x, cost_y, k, plan.plan, min(size, self.max_iter - plan.n_iter))
            plan = replace(more, n_iter=plan.n_iter + more.n_iter)
        return plan

    def _iterate(self, cost_x: np.ndarray, cost_y: np.ndarray, k: int, first: np.ndarray, max_iter: int) -> Plan:
        import ot

        linear = _pinned(anchor_cost(cost_x[:, :k], cost_y[:, :k]), k)
        uniform = [np.full(len(cost), 1 / len(cost)) for cost in (cost_x, cost_y)]
        common = {
            "alpha": self.alpha if k else 1.0,
            "symmetric": True,
            "G0": first,
            "max_iter": max_iter,
            "log": True,
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if self.epsilon:
                plan, log = ot.gromov.entropic_fused_gromov_wasserstein(
                    linear, cost_x, cost_y, *uniform, epsilon=self.epsilon, tol=self.tol, **common
                )
                done = log["err"][-1] <= self.tol
                n_iter = 10 * len(log["err"]) - 9 if done else max_iter  # POT looks at the error every ten iterations
            else:
                plan, log = ot.gromov.fused_gromov_wasserstein(
                    linear, cost_x, cost_y, *uniform, tol_rel=self.tol, **common
                )
                n_iter = len(log["loss"]) - 1
                done = n_iter < max_iter
        failed = any("converge" in str(w.message) or "numItermax" in str(w.message) for w in caught)
        return Plan(plan, float(log["fgw_dist"]), done and not failed, n_iter)

    def _extend(self, x: np.ndarray, targets: np.ndarray) -> None:
        if self.extension == "knn":
            self.arrays_ = {"cells": x.astype(np.float32), "targets": targets.astype(np.float32)}
            return
        mean_x, mean_y = x.mean(axis=0), targets.mean(axis=0)
        weight, intercept = linear_map(ridge, x - mean_x, targets - mean_y, x.std(axis=0))
        offset = mean_y + intercept - mean_x @ weight
        self.arrays_ = {"weight": weight.astype(np.float32), "offset": offset.astype(np.float32)}

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        state = self.arrays_
        if "weight" in state:
            return x @ state["weight"] + state["offset"]
        near = NearestNeighbors(n_neighbors=min(10, len(state["cells"]))).fit(state["cells"])
        distance, rows = near.kneighbors(x)
        weight = np.exp(-np.square(distance / (distance.mean(axis=1, keepdims=True) + 1e-12)))
        return np.einsum("nk,nkp->np", weight / weight.sum(axis=1, keepdims=True), state["targets"][rows])

    def _state(self) -> Arrays:
        return dict(self.arrays_)

    def _load_state(self, state: Arrays) -> None:
        names = ("weight", "offset") if self.extension == "ridge" else ("cells", "targets")
        self.arrays_ = {name: state[name] for name in names}


def geodesics(cells: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Hop counts of shortest paths in the symmetric kNN graph, shape (n, n), float64, mean 1.

    The edges of the minimum spanning tree belong to the graph, so that it is connected.
    """
    if len(cells) < 2:
        return np.zeros((len(cells), len(cells)))
    tree = minimum_spanning_tree(squareform(pdist(cells)) + 1e-12)
    graph = kneighbors_graph(cells, min(n_neighbors, len(cells) - 1), mode="connectivity") + tree
    lengths = shortest_path(graph, method="D", directed=False, unweighted=True)
    return np.asarray(lengths / (lengths.mean() or 1.0))


def anchor_cost(profile_x: np.ndarray, profile_y: np.ndarray) -> np.ndarray:
    """Mean squared difference of two sets of distances to k anchors, (n, k) and (m, k) -> (n, m); 0 for k = 0."""
    n, k = profile_x.shape
    if k == 0:
        return np.zeros((n, len(profile_y)))
    square = np.square(profile_x).sum(1)[:, None] + np.square(profile_y).sum(1) - 2 * profile_x @ profile_y.T
    return np.maximum(square, 0) / k


def _pinned(cost: np.ndarray, k: int) -> np.ndarray:
    """Cost with the first k rows and columns tied to each other: free along the diagonal, dearest off it."""
    cost[:k] = cost[:, :k] = cost.max()
    cost[range(k), range(k)] = 0
    return cost


def _subsample(matrix: Matrix, anchors: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Anchor rows first, then random others up to `size`, float64."""
    others = rng.permutation(np.setdiff1d(np.arange(matrix.shape[0]), anchors))[: max(size - len(anchors), 0)]
    return dense(matrix[np.concatenate([anchors, others])]).astype(np.float64)


def _match(cost: np.ndarray) -> np.ndarray:
    """Optimal plan for a linear cost, with uniform marginals."""
    import ot

    return np.asarray(ot.emd(*(np.full(n, 1 / n) for n in cost.shape), cost))
