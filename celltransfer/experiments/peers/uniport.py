"""uniPort in its mode for modalities without common features."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.preprocessing import MinMaxScaler

from celltransfer.data.pair import dense
from celltransfer.experiments.peers.base import Peer, Translated, kind, lent_to_numpy, nearest_mean
from celltransfer.pp import Recipe

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

N_FEATURES = 2000
ITERATIONS, BATCH = 30_000, 256


class UniPort(Peer):
    """Coupled autoencoders with minibatch unbalanced optimal transport."""

    title = "uniPort (mode d)"
    reference = "Cao et al. 2022"
    package = "uniport"
    licence = "MIT"
    modules = ("uniport",)
    uses_anchors = False
    transductive = True
    needs = "any two modalities"
    given = (
        f"up to {N_FEATURES:,} features (variable genes, most open peaks), scaled to 0 to 1; {ITERATIONS:,} "
        "iterations, or as many as there is time for, with early stopping; mean of the 10 nearest target cells in the "
        "latent space (its own prediction fails in this mode: it returns a variable that it has not set)"
    )

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Embed training and test cells, look up."""
        cells, target = task.mdata.mod[task.source], task.mdata.mod[task.target]
        new = task.source_test[~task.source_test.obs_names.isin(cells.obs_names)]
        source = ad.concat([cells, new], merge="same") if new.n_obs else cells
        sides = [_scaled(source, kind(task, task.source), 0), _scaled(target, kind(task, task.target), 1)]
        batch = min(BATCH, (source.n_obs + target.n_obs) // 2)
        per_epoch = (source.n_obs + target.n_obs) // batch
        start = time.perf_counter()
        _run(sides, seed, per_epoch, batch)
        rate = (time.perf_counter() - start) / per_epoch
        _run(sides, seed, int(np.clip(0.8 * clock.left() / rate, per_epoch, ITERATIONS)), batch)
        rows = source.obs_names.get_indexer(task.source_test.obs_names)
        x, y = (np.nan_to_num(side.obsm["latent"]) for side in sides)
        return nearest_mean(x[rows], y, task.normalizer.transform(target.X)), task.truth.var_names


def _run(sides: list[AnnData], seed: int, iteration: int, batch: int) -> None:
    """Leave the cells' places in the latent space in ``obsm["latent"]``."""
    import uniport

    with tempfile.TemporaryDirectory() as folder, lent_to_numpy(Inf=np.inf):
        uniport.Run(adatas=sides, mode="d", iteration=iteration, batch_size=batch, seed=seed, outdir=f"{folder}/")


def _scaled(adata: AnnData, values: str, domain: int) -> AnnData:
    options: dict[str, Any] = {"n_top_features": N_FEATURES} if values in ("rna", "atac") else {}
    z = dense(Recipe(values, n_components=None, **options).fit(adata).transform(adata))
    side = ad.AnnData(MinMaxScaler().fit_transform(z).clip(0, 1).astype(np.float32))
    side.obs_names = adata.obs_names
    side.obs["domain_id"] = pd.Categorical([domain] * side.n_obs)
    side.obs["source"] = f"domain {domain}"
    return side
