"""MultiVI, which has a place for few multiome cells among many of either kind alone."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from celltransfer.data.pair import dense
from celltransfer.experiments.peers.base import Peer, Translated, anchor_rows

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock


class MultiVI(Peer):
    """Impute the accessibility of cells with RNA alone."""

    title = "MultiVI"
    reference = "Ashuach et al. 2023"
    package = "scvi-tools"
    licence = "BSD-3-Clause"
    modules = ("scvi",)
    kinds = ("rna", "atac")
    needs = "RNA and ATAC counts; pairs"
    min_anchors = 1
    given = (
        "anchors as multiome cells, the rest as cells of one modality (the other all 0, which the model takes as not "
        "measured); features of at least 1 % of the cells; imputed probabilities, normalised as counts would be; "
        "500 epochs with early stopping, or until time is up"
    )

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Train on anchors and unpaired cells, impute the test cells."""
        import mudata
        import scvi

        scvi.settings.seed = seed
        frames, new = zip(
            *(_filled(task, name, own) for own, name in enumerate((task.source, task.target))), strict=True
        )
        modalities = {"modalities": {"rna_layer": "rna", "atac_layer": "atac"}}
        mdata = mudata.MuData(dict(zip(("rna", "atac"), frames, strict=True)))
        scvi.model.MULTIVI.setup_mudata(mdata, **modalities)
        model = scvi.model.MULTIVI(mdata)
        model.train(**trainer_options(clock))
        test = mudata.MuData(dict(zip(("rna", "atac"), new, strict=True)))
        test.obs["_indices"] = np.arange(test.n_obs)
        imputed = model.get_normalized_accessibility(test, return_numpy=True)
        known = task.truth.var_names.get_indexer(frames[1].var_names)
        full = np.zeros((len(imputed), task.truth.n_vars), dtype=np.float32)
        full[:, known] = imputed
        return dense(task.normalizer.transform(sp.csr_matrix(full)))[:, known], frames[1].var_names


def trainer_options(clock: Clock) -> dict[str, Any]:
    """Of scvi-tools' trainer: the CPU, until time is up."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "max_time": timedelta(seconds=clock.left()),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _filled(task: Task, modality: str, own: int) -> tuple[AnnData, AnnData]:
    """One modality of all cells: anchors, source cells, target cells; and of the test cells. 0 where not measured."""
    rows = anchor_rows(task)
    others = [
        np.setdiff1d(np.arange(task.mdata.mod[name].n_obs), rows[:, i])
        for i, name in enumerate((task.source, task.target))
    ]
    cells = task.mdata.mod[modality]
    measured = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    cells = cells[:, measured >= max(1, 0.01 * cells.n_obs)]
    names = [f"{kind}_{i}" for kind, n in zip("axy", (len(rows), *map(len, others)), strict=True) for i in range(n)]
    blank = [_zeros(n, cells) for n in map(len, others)]
    blank[own] = cells[others[own]]
    joint = ad.concat([cells[rows[:, own]], *blank], merge="same")
    joint.obs_names = names
    test = task.source_test[:, cells.var_names].copy() if own == 0 else _zeros(task.source_test.n_obs, cells)
    test.obs_names = task.source_test.obs_names
    return _plain(joint), _plain(test)


def _zeros(n: int, like: AnnData) -> AnnData:
    shape: Any = (n, like.n_vars)
    blank = ad.AnnData(sp.csr_matrix(shape, dtype=np.float32))
    blank.var_names = like.var_names
    return blank


def _plain(adata: AnnData) -> AnnData:
    plain = ad.AnnData(sp.csr_matrix(adata.X, dtype=np.float32))
    plain.obs_names, plain.var_names = adata.obs_names, adata.var_names
    return plain
