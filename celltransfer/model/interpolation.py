"""`TransferModel.interpolate`: cells on their way from source to target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from celltransfer.data import cells, writeback
from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from celltransfer.model.model import TransferModel
    from celltransfer.pp.slots import OnMissing


def interpolate(
    self: TransferModel,
    data: MuData | AnnData,
    steps: int = 5,
    *,
    features: Sequence[str] | None = None,
    on_missing: OnMissing | None = None,
) -> AnnData:
    """Cells on the way from source to target, in equal steps of time; for methods that have a path.

    The way leads through the target recipe's feature space, and every point of it is decoded by that recipe. It starts
    where transport does: at the cells themselves where source and target share their features (one modality under two
    conditions, `celltransfer.pp.conditions`), otherwise at where an affine map lays them. Of ``model.backward`` it is
    the same way from its other end, in the source's features.

    Parameters
    ----------
    data
        A MuData with the source modality, or an AnnData of source cells. Not changed.
    steps
        Steps of time between start (0) and translation (1).
    features
        Target features to give; ``None`` gives all the model was fitted on.
    on_missing
        ``"error"`` or ``"zero"``: what to do about source features that `data` lacks. ``None``: as the recipe says.

    Returns
    -------
    AnnData
        ``steps + 1`` times as many cells, one time after the other, named ``"{cell}@{time}"``:

        ``X`` : numpy.ndarray (cells, features), float32
            On the target's normalised scale.
        ``obs["transport_time"]`` : pandas.Series (float)
            0 to 1; with the columns of the source cells, of which those named like these two are replaced.
        ``obs["source_cell"]`` : pandas.Series (str)
            Barcode of the source cell.
        ``obsm["X_translated"]`` : numpy.ndarray (cells, d), float32
            The points in the target recipe's feature space.

    Raises
    ------
    ConfigError
        The method has no path, and which has; or `steps` is below 1.
    FeatureError
        Source features are missing, or `features` are unknown or named twice.
    InputError
        There are no cells, or two have one barcode.
    """
    from anndata import AnnData
    from anndata.utils import make_index_unique

    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ConfigError(f"steps={steps!r}; expected a whole number of at least 1.")
    mdata = None if isinstance(data, AnnData) else data
    adata = cells.check_cells(data) if mdata is None else cells.check_modality(mdata, self.source)
    columns, times = self.columns(features), np.arange(steps + 1) / steps
    writeback.check_memory(adata.n_obs * len(times), len(columns) + self.translator.n_features_out_, 1)
    x, _ = self.inputs(adata, mdata, on_missing=on_missing)
    points = self.translator.path(x, times.tolist())
    target = self.recipes[self.target]
    obs = adata.obs.iloc[np.tile(np.arange(adata.n_obs), len(times))].copy()
    names, n = adata.obs_names.to_numpy(str), adata.n_obs
    obs["transport_time"], obs["source_cell"] = np.repeat(times, n), np.tile(names, len(times))
    obs.index = make_index_unique(pd.Index([f"{name}@{time:.4g}" for time in times for name in names]))
    decoded = np.empty((len(obs), len(columns)), np.float32)
    for i, block in enumerate(points):
        decoded[i * n : (i + 1) * n] = target.inverse_transform(block, columns)
    out = AnnData(decoded, obs=obs, var=target.var_.iloc[columns].copy())
    out.obsm["X_translated"] = points.reshape(-1, points.shape[2])
    out.uns["celltransfer"] = self.provenance()
    return out
