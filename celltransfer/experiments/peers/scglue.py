"""GLUE, which needs to know which feature of one modality belongs to which of the other."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.data.pair import dense
from celltransfer.experiments.peers.base import Peer, Translated, anchor_rows, nearest_mean, recipe

if TYPE_CHECKING:
    import networkx as nx
    from anndata import AnnData

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

# Column of the target's var with the name of a source feature.
LINK = "linked_gene"
N_GENES = 2000
# Cells a side in the epoch that tells how long an epoch takes.
TRIAL = 500
# Where there is time for fewer epochs, there are fewer cells; and the share of burn-in, 8 of 48 by its defaults.
MIN_EPOCHS, BURN_IN = 5, 1 / 6


class Glue(Peer):
    """Embed both modalities with a graph of linked features, and look up the nearest target cells."""

    title = "GLUE"
    reference = "Cao & Gao 2022"
    package = "scglue"
    licence = "MIT"
    modules = ("scglue", "networkx")
    kinds = ("rna", "atac")
    needs = f"RNA and ATAC counts; feature links (`var['{LINK}']`)"
    given = (
        f"{N_GENES:,} variable genes and the peaks linked to them (weight 1); 50 components into the encoders; default "
        "weights; epochs and patience as it sets them, pretraining and fine-tuning with half of the time each; fewer "
        "cells where there is no time for five epochs; mean of the 10 nearest target cells in the joint embedding (its "
        "authors advise against using decoded values); anchors as paired cells"
    )

    def applies(self, task: Task) -> str | None:
        """Links are needed."""
        reason = super().applies(task)
        if reason is None and not _links(task).any():
            reason = (
                f"it needs feature links, and `var[{LINK!r}]` of {task.target!r} names no feature of {task.source!r}"
            )
        return reason

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Embed, look up."""
        import scglue
        from scglue.models import PairedSCGLUEModel, SCGLUEModel, fit_SCGLUE

        # A forked worker can wait for ever on locks that were held at the fork.
        scglue.config.GRAPH_SHUFFLE_NUM_WORKERS = 0
        paired = len(task.anchors) > 0
        model = PairedSCGLUEModel if paired else SCGLUEModel
        sides = _sides(task)
        graph = _graph(sides)
        for side in sides.values():
            side.var["highly_variable"] = [name in graph for name in side.var_names]
            scglue.models.configure_dataset(side, "NB", use_rep="X_rep", use_obs_names=paired)
        with tempfile.TemporaryDirectory() as folder:
            shown, options = _epochs(model, sides, graph, folder, clock)
            fitted = fit_SCGLUE(
                shown, graph, model=model, init_kws={"random_seed": seed}, fit_kws={"directory": folder} | options
            )
        if not all(bool(weights.isfinite().all()) for weights in fitted.net.parameters()):
            raise FloatingPointError(
                "GLUE became NaN in fine-tuning; its balancing weights do where no clusters match after pretraining."
            )
        test = task.source_test.copy()
        test.obsm["X_rep"] = dense(recipe(task, task.source).transform(test))
        z, y = fitted.encode_data("x", test), fitted.encode_data("y", sides["y"])
        return nearest_mean(z, y, task.normalizer.transform(sides["y"].X)), task.truth.var_names


def _epochs(
    model: Any, sides: dict[str, AnnData], graph: nx.MultiDiGraph, folder: str, clock: Clock
) -> tuple[dict[str, AnnData], dict[str, int]]:
    """Cells to train on, and options that keep each of the two stages in time; none where its own epochs fit."""
    trial = model(sides, sorted(graph.nodes))
    trial.compile()
    few = _some(sides, TRIAL)
    start = time.perf_counter()
    trial.fit(few, graph, max_epochs=1, align_burnin=1, directory=folder)
    n_cells, n_few = (len(set().union(*(side.obs_names for side in own.values()))) for own in (sides, few))
    rate = (time.perf_counter() - start) * n_cells / n_few
    n_batches = 0.9 * n_cells / 128
    wanted = np.ceil(max(model.MAX_EPOCHS_PRG, model.MAX_EPOCHS_PRG / trial.trainer.lr / n_batches))
    possible = 0.8 * clock.left() / 2 / rate
    if possible >= wanted:
        return sides, {}
    if possible < MIN_EPOCHS:
        sides = _some(sides, max(TRIAL, int(possible / MIN_EPOCHS * n_cells / 2)))
    n_epochs = max(MIN_EPOCHS, int(possible))
    return sides, {"max_epochs": n_epochs, "align_burnin": max(1, int(n_epochs * BURN_IN))}


def _some(sides: dict[str, AnnData], n: int) -> dict[str, AnnData]:
    """At most n cells a side, pairs first; the others are in random order as they are."""
    order = {key: np.argsort(~side.obs_names.str.startswith("pair_"), kind="stable") for key, side in sides.items()}
    return {key: side[order[key][:n]].copy() for key, side in sides.items()}


def _sides(task: Task) -> dict[str, AnnData]:
    """Both modalities with a representation and the features that count; anchors have one name."""
    import scanpy as sc

    rows = anchor_rows(task)
    sides = {}
    for i, (key, name) in enumerate((("x", task.source), ("y", task.target))):
        cells = task.mdata.mod[name].copy()
        cells.obsm["X_rep"] = dense(recipe(task, name).transform(cells))
        names = np.array([f"{key}_{row}" for row in range(cells.n_obs)], dtype=object)
        names[rows[:, i]] = [f"pair_{pair}" for pair in range(len(rows))]
        cells.obs_names = names
        sides[key] = cells
    log = sc.pp.log1p(sc.pp.normalize_total(sides["x"], copy=True), copy=True)
    variable = sc.pp.highly_variable_genes(log, n_top_genes=min(N_GENES, log.n_vars), inplace=False)
    sides["x"].var["variable"] = np.asarray(variable["highly_variable"])
    return sides


def _graph(sides: dict[str, AnnData]) -> nx.MultiDiGraph:
    """Variable genes, the peaks linked to them, and a loop at each."""
    import networkx as nx

    genes = set(sides["x"].var_names[sides["x"].var["variable"]])
    links = [(gene, peak) for peak, gene in sides["y"].var[LINK].astype(str).items() if gene in genes]
    nodes = {node for link in links for node in link}
    graph = nx.MultiDiGraph()
    for a, b in [*links, *((peak, gene) for gene, peak in links), *((node, node) for node in sorted(nodes))]:
        graph.add_edge(a, b, weight=1.0, sign=1)
    return graph


def _links(task: Task) -> np.ndarray:
    var = task.mdata.mod[task.target].var
    if LINK not in var:
        return np.zeros(len(var), dtype=bool)
    return np.asarray(var[LINK].astype(str).isin(task.mdata.mod[task.source].var_names))
