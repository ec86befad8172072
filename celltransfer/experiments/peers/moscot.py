"""moscot's translation problem: Gromov-Wasserstein between modalities, fused where pairs give features in common."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
from scipy.spatial.distance import cdist
from sklearn.preprocessing import normalize

from celltransfer.experiments.peers.base import Matching, Peer, Translated, kind

if TYPE_CHECKING:
    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

MAX_CELLS = 2000
# Time grows with the third power of the cells; so many per cube root of a second are safe on one slow core.
CELLS_PER_TIME = 320


class Moscot(Peer):
    """(Fused) Gromov-Wasserstein, entropic."""

    title = "moscot (TranslationProblem)"
    reference = "Klein et al. 2025"
    package = "moscot"
    licence = "BSD-3-Clause"
    modules = ("moscot", "jax")
    transductive = True
    needs = "any two modalities"
    given = (
        f"at most {MAX_CELLS:,} cells a side; 50 components, those of ATAC at unit length, and epsilon 1e-3 as in the "
        "tutorial; with anchors the standardised distances to them as joint attribute, alpha .7 as in the tutorial, "
        "without them alpha 1; barycentric projection. The solver cannot be stopped by the clock, so a shorter limit "
        "means fewer cells: about 1,200 in a minute"
    )

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Project under the plan."""
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
        from moscot.problems.cross_modality import TranslationProblem

        size = 100 * round(CELLS_PER_TIME * math.ceil(clock.left()) ** (1 / 3) / 100)
        match = Matching.of(task, min(MAX_CELLS, size), seed)
        k = match.n_anchors
        sides = [_side(z, k, kind(task, name)) for z, name in ((match.x, task.source), (match.y, task.target))]
        problem = TranslationProblem(adata_src=sides[0], adata_tgt=sides[1])
        problem = problem.prepare(src_attr="cells", tgt_attr="cells", joint_attr="anchors" if k else None)
        problem = problem.solve(alpha=0.7 if k else 1.0, epsilon=1e-3)
        plan = np.asarray(problem["src", "tgt"].solution.transport_matrix, dtype=np.float64)
        if not np.isfinite(plan).all():
            raise FloatingPointError("moscot's plan is not finite.")
        return match.project(plan)


def _side(z: np.ndarray, k: int, values: str) -> ad.AnnData:
    """Cells with their components, and their distances to the anchors."""
    side = ad.AnnData(np.zeros((len(z), 1), dtype=np.float32))
    side.obsm["cells"] = normalize(z) if values == "atac" else z
    if k:
        distance = cdist(side.obsm["cells"], side.obsm["cells"][:k])
        side.obsm["anchors"] = (distance - distance.mean(axis=0)) / np.maximum(distance.std(axis=0), 1e-9)
    return side
