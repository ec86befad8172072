"""totalVI, which imputes proteins in batches that lack them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from celltransfer.data.pair import dense
from celltransfer.experiments.peers.base import Peer, Translated, anchor_rows
from celltransfer.experiments.peers.multivi import trainer_options

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

N_GENES = 4000


class TotalVI(Peer):
    """Impute the proteins of cells with RNA alone."""

    title = "totalVI"
    reference = "Gayoso et al. 2021"
    package = "scvi-tools"
    licence = "BSD-3-Clause"
    modules = ("scvi", "skmisc")
    kinds = ("rna", "protein")
    needs = "RNA and protein counts; pairs"
    min_anchors = 3
    given = (
        f"anchors as a batch with proteins, unpaired RNA cells as a batch without; {N_GENES:,} variable genes; imputed "
        "proteins without background as in the tutorial (mean of 25 samples), normalised as counts would be; default "
        "epochs with early stopping, or until time is up. It has no place for cells with proteins alone"
    )

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Train on anchors and RNA cells, impute the test cells."""
        import scanpy as sc
        import scvi

        scvi.settings.seed = seed
        cells = task.mdata.mod[task.source]
        first = anchor_rows(task)
        rest = np.setdiff1d(np.arange(cells.n_obs), first[:, 0])
        proteins = task.mdata.mod[task.target][first[:, 1]]
        joint = _joint(cells[np.concatenate([first[:, 0], rest])], proteins)
        sc.pp.highly_variable_genes(joint, n_top_genes=min(N_GENES, joint.n_vars), flavor="seurat_v3", subset=True)
        scvi.model.TOTALVI.setup_anndata(joint, protein_expression_obsm_key="protein_expression", batch_key="batch")
        model = scvi.model.TOTALVI(joint)
        model.train(**trainer_options(clock))
        test = _joint(task.source_test[:, joint.var_names], proteins[:0])
        _, imputed = model.get_normalized_expression(
            test, n_samples=25, return_mean=True, transform_batch=["paired"], return_numpy=True
        )
        return dense(task.normalizer.transform(imputed.astype(np.float32))), proteins.var_names


def _joint(rna: AnnData, proteins: AnnData) -> AnnData:
    """RNA cells, of which the first have proteins and make a batch of their own."""
    joint = ad.AnnData(sp.csr_matrix(rna.X, dtype=np.float32))
    joint.obs_names, joint.var_names = rna.obs_names, rna.var_names
    values = np.zeros((rna.n_obs, proteins.n_vars), dtype=np.float32)
    values[: proteins.n_obs] = dense(proteins.X)
    joint.obsm["protein_expression"] = pd.DataFrame(values, index=joint.obs_names, columns=proteins.var_names)
    paired = np.arange(rna.n_obs) < proteins.n_obs
    joint.obs["batch"] = pd.Categorical(np.where(paired, "paired", "rna"), categories=["paired", "rna"])
    return joint
