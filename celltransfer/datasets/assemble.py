"""One shape for every dataset: the same cell annotation in the MuData and in each of its modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mudata import MuData
from scipy import sparse

from celltransfer.data.writeback import no_pull
from celltransfer.datasets import registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData


def counts(matrix: Any) -> sparse.csr_matrix:
    """CSR ``float32`` with sorted column indices."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32)
    csr.sort_indices()
    return csr


def totals(adata: AnnData) -> np.ndarray:
    """Integer sum of each cell, shape ``(n_obs,)``."""
    return np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel().astype(np.int64)


def assemble(
    name: str, modalities: Mapping[str, AnnData], obs: pd.DataFrame, uns: Mapping[str, Any] | None = None
) -> MuData:
    """Make the MuData of a dataset.

    Parameters
    ----------
    name
        Dataset name; its registry entry becomes ``uns["celltransfer_dataset"]``.
    modalities
        The matrices; their ``obs_names`` are taken from the index of ``obs`` and may be part of it.
    obs
        Annotation of all cells. Text columns become categorical.
    uns
        Further entries of ``uns``.
    """
    obs = obs.copy()
    for column in obs.select_dtypes(include=["object", "string"]):
        obs[column] = obs[column].astype("category")
    for adata in modalities.values():
        adata.obs = obs.loc[adata.obs_names].copy()
    with no_pull():
        mdata = MuData(dict(modalities))
    mdata.obs = mdata.obs.join(obs)
    mdata.obs.index.name = obs.index.name
    mdata.uns["celltransfer_dataset"] = registry.get(name).describe()
    for key, value in (uns or {}).items():
        mdata.uns[key] = value
    return mdata
