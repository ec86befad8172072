"""Suite ``anchor_laws``: laws of real co-assayed cells, from their anchors alone and from no pair at all.

`celltransfer benchmark` scores the log density of `ieot`; here are, for the same tasks, a mixture density network on
the anchors and, as chance, `ieot` without anchors: the law of all target cells, whatever the source. Log densities are
of the target recipe's features, in nats a cell. Five settings of the network are tried; the table takes the best of
each data set and number of anchors, chosen on the cells that are scored: in the network's favour.

Claims were stated when its rows were there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from celltransfer.api import fit
from celltransfer.data.pair import dense
from celltransfer.experiments.claims import Says
from celltransfer.experiments.grid.arms import ARMS
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites import conditional
from celltransfer.experiments.tables import first, mean_sd
from celltransfer.translators import make

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from celltransfer.experiments.tables import Column

ANCHORS = (10, 50, 200)
# The smallest has too few cells for the most anchors.
SMALL = ("scgem",)
SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {"n_components": n, "weight_decay": decay, "hidden": hidden}
    for n, decay, hidden in ((1, 1e-4, (64,)), (1, 1e-2, (64,)), (5, 1e-4, (64,)), (5, 1e-2, (64,)), (5, 1e-2, (16,)))
)
NETWORKS = [f"mdn{i}" for i in range(len(SETTINGS))]


def _best(rows: pd.DataFrame) -> pd.Series:
    """The network with the highest mean."""
    return rows[rows[NETWORKS].mean().idxmax()]


class AnchorLaws(Suite):
    """A network on the anchors, and the law of all target cells."""

    name = "anchor_laws"
    title = "Laws of real cells: what anchors alone tell"
    reference = "Beside the laws of celltransfer benchmark, on the same tasks."
    by = ("dataset", "k")
    columns: ClassVar[Mapping[str, Column]] = {
        "k": first("k"),
        "network on the anchors": lambda group: mean_sd(_best(group), 1),
        "all target cells": ("chance", 1),
    }

    def arms(self) -> list[tuple[str, int]]:
        """All data of the benchmark but simulated ones."""
        names = [name for name in ARMS if name != "simulate"]
        return [(name, k) for name in names for k in ANCHORS if not (name in SMALL and k == ANCHORS[-1])]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Mean log density of the true partners under every network, and under the law of all target cells."""
        arm, seed = ARMS[job["dataset"]], job["seed"]
        task = arm.task(arm.load(), regime="disjoint", part="test", k=job["k"], seed=seed)
        # The recipes are those of every method; ridge is fitted for its speed.
        how: dict[str, Any] = {"source": arm.source, "target": arm.target, "anchors": task.anchors, "verdict": False}
        model = fit(task.mdata, method="ridge", seed=seed, **how)
        sides = ((arm.source, "source_id", task.source_test), (arm.target, "target_id", task.truth))
        x, y = (dense(model.recipes[name].transform(task.mdata[name])) for name, *_ in sides)
        test_x, test_y = (dense(model.recipes[name].transform(cells)) for name, _, cells in sides)
        rows = [task.mdata[name].obs_names.get_indexer(model.anchors[column]) for name, column, _ in sides]
        found: Scores = {}
        for name, settings in zip(NETWORKS, SETTINGS, strict=True):
            law = conditional.fit("mdn", x[rows[0]], y[rows[1]], x, y, seed=seed, **settings)
            found[name] = float(law.log_prob(test_x, test_y).mean())  # type: ignore[union-attr]
        chance = make("ieot").fit(x, y, seed=seed)
        return found | {"chance": float(chance.log_prob(test_x, test_y).mean())}, {}  # type: ignore[attr-defined]

    def says(self) -> list[Says]:
        """Whether anchors alone suffice."""
        text = "With {} anchors the best network tells more than the law of all target cells, on every data set."
        return [
            Says(text.format(k), _gain, [arm for arm in self.arms() if arm[1] == k], ">", 0, what="nats higher by")
            for k in ANCHORS
        ]


def _gain(rows: pd.DataFrame) -> pd.Series:
    return _best(rows) - rows["chance"]
