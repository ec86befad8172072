"""Hiding the pairing of co-assayed cells: who trains, who is scored, who gives what, and under which name."""

from __future__ import annotations

import zlib
from typing import Literal

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer.data.cells import obs_column
from celltransfer.data.writeback import no_pull
from celltransfer.errors import AnchorError, ConfigError, InputError

Regime = Literal["disjoint", "shared"]

TEST_SHARE, DEV_SHARE = 0.25, 0.2
_SPLIT_COLUMN = "split"
# One seed serves many draws: a tag for each keeps them unrelated (not 0, which numpy takes for no tag).
_NAMES, _ROLES, _RENAME = 1, 2, 3


def split_cells(
    mdata: mudata.MuData, source: str, barcodes: np.ndarray, column: str | None, part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Barcodes to train on and to evaluate on."""
    if part not in ("dev", "test"):
        raise ConfigError(f"part={part!r} is not known; choose 'dev' or 'test'.")
    if column is None and _SPLIT_COLUMN in mdata.mod[source].obs:
        column = _SPLIT_COLUMN
    if column is None:
        train, test = _draw(barcodes, TEST_SHARE)
    else:
        values = obs_column(mdata, source, column).reindex(barcodes).to_numpy(dtype=str)
        train, test = barcodes[values == "train"], barcodes[values == "test"]
    if part == "dev":
        train, test = _draw(train, DEV_SHARE)
    if min(len(train), len(test)) < 2:
        raise InputError(f"The split leaves {len(train)} cells to train on and {len(test)} to score; both need 2.")
    return train, test


def _draw(barcodes: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split at random, the same way for the same barcodes on every machine and for every seed."""
    rng = np.random.default_rng(zlib.crc32("\n".join(barcodes).encode()))
    shuffled = rng.permutation(barcodes)
    cut = round(len(barcodes) * share)
    return np.sort(shuffled[cut:]), np.sort(shuffled[:cut])


def draw_roles(pool: np.ndarray, regime: Regime, n_anchors: int, seed: int) -> dict[str, np.ndarray]:
    """Barcodes that give anchors, source cells and target cells, in random and unrelated orders."""
    rng = np.random.default_rng([seed, _ROLES])
    order = rng.permutation(pool)
    if not 0 <= n_anchors <= len(pool) - 2:
        raise AnchorError(f"n_anchors={n_anchors} of {len(pool)} training cells; expected 0 to {len(pool) - 2}.")
    anchors, rest = order[:n_anchors], order[n_anchors:]
    half = len(rest) // 2
    own = (rest[:half], rest[half:]) if regime == "disjoint" else (rest, rest)
    source, target = (rng.permutation(np.concatenate([anchors, cells])) for cells in own)
    return {"anchors": anchors, "source": source, "target": target}


def hide(
    frames: list[AnnData], names: tuple[str, str], roles: dict[str, np.ndarray], seed: int
) -> tuple[mudata.MuData, pd.DataFrame, pd.Series]:
    """The MuData that methods see, the anchors, and the key to the new target names."""
    numbers = np.random.default_rng([seed, _NAMES]).permutation(len(roles["target"]))
    key = pd.Series(roles["target"], index=[f"target_cell_{i:06d}" for i in numbers])
    target = frames[1][roles["target"]].copy()
    target.obs_names = key.index
    found = pd.Series(key.index, index=key.to_numpy())[roles["anchors"]].to_numpy(dtype=object)
    anchors = pd.DataFrame({"source_id": roles["anchors"].astype(object), "target_id": found})
    return _mudata({names[0]: frames[0][roles["source"]].copy(), names[1]: target}), anchors, key


def _mudata(modalities: dict[str, AnnData]) -> mudata.MuData:
    """MuData with the obs columns of its modalities pulled up under their own names."""
    with no_pull():
        mdata = mudata.MuData(modalities)
    obs = pd.concat([adata.obs for adata in modalities.values()])
    for column in obs:
        mdata.obs[column] = obs[column].reindex(mdata.obs_names)
    return mdata


def bare(adata: AnnData, barcodes: np.ndarray, obs: pd.DataFrame) -> AnnData:
    """Matrix, features and condition of the cells, and nothing else that could tell a cell's partner."""
    rows = adata.obs_names.get_indexer(barcodes)
    return AnnData(adata.X[rows], obs=obs.copy(), var=adata.var.copy())


def renamed(mdata: mudata.MuData, source: str, target: str, anchors: pd.DataFrame, seed: int) -> mudata.MuData:
    """The MuData with the names of all target cells but the anchors permuted, arrays and rows untouched."""
    cells = mdata.mod[target].copy()
    names = np.array(cells.obs_names, dtype=object)
    free = np.flatnonzero(~np.isin(names, anchors["target_id"].to_numpy(dtype=object)))
    names[free] = names[np.random.default_rng([seed, _RENAME]).permutation(free)]
    cells.obs_names = names
    return _mudata({source: mdata.mod[source].copy(), target: cells})
