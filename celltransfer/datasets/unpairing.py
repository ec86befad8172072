"""Turning a co-assay into the problem that celltransfer solves, with the truth kept for the scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celltransfer.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from mudata import MuData

# One seed serves two draws: a tag for each keeps them unrelated.
_SPLIT, _ROLES = 31, 32


def unpair(
    mdata: MuData, n_anchors: int = 10, *, source: str | None = None, target: str | None = None, seed: int = 0
) -> MuData:
    """Make a fully co-assayed MuData unpaired: different training cells for each modality, and a few anchors.

    Half of the training cells keep only the source modality, the other half only the target, `n_anchors` keep both.
    Test cells keep both modalities and are the truth for `celltransfer.report`; they are no training cells. The rows
    of each modality are shuffled on their own.

    Parameters
    ----------
    mdata
        Cells measured in both modalities. ``obs["split"]`` with the values train and test is kept where there is
        one; otherwise a quarter of the cells is drawn for the test.
    n_anchors
        Number of co-assayed training cells.
    source, target
        The modalities; the first two if ``None``.
    seed
        Seed of the draw.

    Returns
    -------
    MuData
        A new MuData. Every ``obs`` gains ``train`` (bool); fit it with ``train="train"``.

    Raises
    ------
    InputError
        ``mdata`` is no full co-assay in MuData form, or has too few training cells for the anchors.
    """
    from celltransfer.data.cells import check_mudata

    check_mudata(mdata)
    names = list(mdata.mod)
    source, target = source or names[0], target or next(n for n in names if n != (source or names[0]))
    cells = mdata.mod[source].obs_names
    if not cells.isin(mdata.mod[target].obs_names).all() or mdata.mod[target].n_obs != len(cells):
        raise InputError(f"{source!r} and {target!r} do not hold the same cells; only a full co-assay can be unpaired.")
    rng = np.random.default_rng([seed, _ROLES])
    train, test = _split(mdata, cells, seed)
    if not 0 <= n_anchors <= len(train) - 2:
        raise InputError(f"n_anchors={n_anchors} does not fit into {len(train)} training cells.")
    order = rng.permutation(train)
    anchors, rest = order[:n_anchors], order[n_anchors:]
    halves = {source: rest[: len(rest) // 2], target: rest[len(rest) // 2 :]}
    return _assemble(mdata, {name: rng.permutation([*half, *anchors, *test]) for name, half in halves.items()}, train)


def _split(mdata: MuData, cells: pd.Index, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if "split" in mdata.obs and (mdata.obs["split"] == "test").any():
        split = mdata.obs["split"].reindex(cells).astype(str).to_numpy()
        return cells[split == "train"].to_numpy(), cells[split == "test"].to_numpy()
    order = np.random.default_rng([seed, _SPLIT]).permutation(cells.to_numpy())
    n_test = len(order) // 4
    return order[n_test:], order[:n_test]


def _assemble(mdata: MuData, rows: dict[str, np.ndarray], train: np.ndarray) -> MuData:
    from mudata import MuData

    from celltransfer.data.writeback import no_pull

    modalities = {}
    for name, barcodes in rows.items():
        modalities[name] = mdata.mod[name][barcodes].copy()
        modalities[name].obs["train"] = modalities[name].obs_names.isin(train)
    with no_pull():
        new = MuData(modalities)
    new.obs = new.obs.join(mdata.obs.drop(columns=["train"], errors="ignore"))
    new.obs["train"] = new.obs_names.isin(train)
    new.uns.update(mdata.uns)
    return new
