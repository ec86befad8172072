"""Gromov-Wasserstein matching by POT, as in its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import cdist

from celltransfer.experiments.peers.base import Matching, Peer, Translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

MAX_CELLS = 2000
# Iterations between looks at the clock; the limit is POT's.
PART, MAX_ITER = 5, 1000


class _Pot(Peer):
    package = "POT"
    licence = "MIT"
    modules = ("ot",)
    transductive = True
    needs = "any two modalities"

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Project under the plan between distances divided by their largest."""
        match = Matching.of(task, MAX_CELLS, seed)
        costs = [cdist(z, z) for z in (match.x, match.y)]
        cost_x, cost_y = (cost / cost.max() for cost in costs)
        return match.project(self._plan(cost_x, cost_y, match.n_anchors, clock))

    def _plan(self, cost_x: np.ndarray, cost_y: np.ndarray, k: int, clock: Clock) -> np.ndarray:
        raise NotImplementedError


class EntropicGromov(_Pot):
    """Entropic Gromov-Wasserstein without pairs; epsilon as in POT's example."""

    title = "Entropic Gromov-Wasserstein (POT)"
    reference = "Peyré, Cuturi & Solomon 2016; Flamary et al. 2021"
    uses_anchors = False
    given = (
        f"at most {MAX_CELLS:,} cells a side; Euclidean distances between 50 components, divided by the largest; "
        "epsilon 5e-4 as in POT's example; barycentric projection"
    )

    def _plan(self, cost_x: np.ndarray, cost_y: np.ndarray, k: int, clock: Clock) -> np.ndarray:
        import ot

        def step(plan: np.ndarray | None, max_iter: int) -> tuple[np.ndarray, dict[str, Any]]:
            return ot.gromov.entropic_gromov_wasserstein(
                cost_x, cost_y, epsilon=5e-4, G0=plan, max_iter=max_iter, symmetric=True, log=True
            )

        return _timed(step, clock, lambda log: log["err"][-1] <= 1e-9)


class FusedGromov(_Pot):
    """Fused Gromov-Wasserstein; the linear cost compares the distances to the anchors."""

    title = "Fused Gromov-Wasserstein (POT)"
    reference = "Vayer et al. 2020; Flamary et al. 2021"
    min_anchors = 1
    given = (
        f"at most {MAX_CELLS:,} cells a side; Euclidean distances between 50 components, divided by the largest; "
        "linear cost: mean squared difference of the distances to the anchors; alpha .5 (POT's default); barycentric "
        "projection"
    )

    def _plan(self, cost_x: np.ndarray, cost_y: np.ndarray, k: int, clock: Clock) -> np.ndarray:
        import ot

        linear = cdist(cost_x[:, :k], cost_y[:, :k], "sqeuclidean") / k

        def step(plan: np.ndarray | None, max_iter: int) -> tuple[np.ndarray, dict[str, Any]]:
            return ot.gromov.fused_gromov_wasserstein(
                linear, cost_x, cost_y, G0=plan, max_iter=max_iter, symmetric=True, log=True
            )

        return _timed(step, clock, lambda log: len(log["loss"]) - 1 < PART)


def _timed(
    step: Callable[[np.ndarray | None, int], tuple[np.ndarray, dict[str, Any]]],
    clock: Clock,
    done: Callable[[dict[str, Any]], bool],
) -> np.ndarray:
    """Iterate in parts, each from the plan of the last, until done or out of time.

    Iterations remember the plan alone, so parts are the same as one run. A part that went numerically wrong is dropped.
    """
    plan: np.ndarray | None = None
    for _ in range(0, MAX_ITER, PART):
        new, log = step(plan, PART)
        if not np.isfinite(new).all() or new.sum() < 0.5:
            break
        plan = new
        if done(log) or clock.left() == 0:
            break
    if plan is None:
        raise FloatingPointError("POT's plan is not finite after the first iterations.")
    return plan
