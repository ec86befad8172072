"""Anchors: the few cells measured in both modalities, the only pairs that training sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from celltransfer.data.cells import check_real_barcodes, coassayed, obs_column, read_flags
from celltransfer.errors import AnchorError

if TYPE_CHECKING:
    from mudata import MuData

AnchorsLike = int | str | pd.DataFrame | pd.Series | np.ndarray | Sequence[str] | None


@dataclass(frozen=True, eq=False)
class Anchors:
    """Anchor pairs by row and by name.

    Attributes
    ----------
    rows
        Pairs (i, j): row i of the source modality and row j of the target modality are one cell. Shape (k, 2).
    source_id, target_id
        Their barcodes, shape (k,).
    """

    rows: np.ndarray
    source_id: np.ndarray
    target_id: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self) -> pd.DataFrame:
        """Table with columns ``source_id`` and ``target_id``."""
        return pd.DataFrame({"source_id": self.source_id, "target_id": self.target_id})


def resolve_anchors(
    mdata: MuData,
    source: str,
    target: str,
    anchors: AnchorsLike = None,
    *,
    train_source: np.ndarray | None = None,
    train_target: np.ndarray | None = None,
    seed: int = 0,
) -> Anchors:
    """Find the anchor pairs that `anchors` names.

    Parameters
    ----------
    mdata
        Source and target cells.
    source, target
        Names of the modalities.
    anchors
        ``None``: all co-assayed training cells. An integer: that many of them, drawn with `seed`. A string: boolean
        obs column. A list of barcodes, or a boolean mask over ``mdata.obs``. A table of (source_id, target_id) for
        cells whose barcodes differ between the modalities.
    train_source, train_target
        Masks of the training cells; anchors outside them raise.
    seed
        Seed of the draw.

    Raises
    ------
    AnchorError
        Anchors are unknown, not co-assayed, not in train, duplicated, or fewer than asked for.
    """
    if isinstance(anchors, bool):
        raise AnchorError("anchors=True/False is not a number of anchors; pass an integer, or None for all.")
    if anchors is None or isinstance(anchors, int | np.integer):
        rows = _draw(mdata, source, target, anchors, (train_source, train_target), seed)
    elif isinstance(anchors, pd.DataFrame) or np.ndim(anchors) == 2:
        rows = _from_table(mdata, source, target, pd.DataFrame(anchors))
    else:
        if not isinstance(anchors, list | tuple | np.ndarray | pd.Index):
            check_real_barcodes(mdata, source, target)
        rows = _from_barcodes(mdata, source, target, _barcodes(mdata, source, anchors))
    _check_train(mdata, source, rows[:, 0], train_source)
    _check_train(mdata, target, rows[:, 1], train_target)
    for side, name in enumerate((source, target)):
        _check_once(mdata, name, rows[:, side])
    names = (mdata.mod[source].obs_names[rows[:, 0]], mdata.mod[target].obs_names[rows[:, 1]])
    return Anchors(rows, names[0].to_numpy(dtype=str), names[1].to_numpy(dtype=str))


def _draw(
    mdata: MuData, source: str, target: str, k: int | None, train: tuple[np.ndarray | None, ...], seed: int
) -> np.ndarray:
    if k == 0:
        return np.empty((0, 2), dtype=np.int64)
    if k is not None and k < 0:
        raise AnchorError(f"anchors={k} is negative.")
    check_real_barcodes(mdata, source, target)
    rows = coassayed(mdata, source, target)
    for side, mask in enumerate(train):
        rows = rows if mask is None else rows[mask[rows[:, side]]]
    if len(rows) == 0:
        raise AnchorError(
            f"{source!r} and {target!r} share no barcode among the training cells, so there are no anchors. Pass "
            "anchors= as a table of (source_id, target_id) if the barcodes differ, or anchors=0 to fit without anchors."
        )
    if k is None:
        return rows
    if k > len(rows):
        raise AnchorError(f"anchors={k}, but only {len(rows)} training cells are measured in both modalities.")
    chosen = np.random.default_rng(seed).choice(len(rows), size=int(k), replace=False)
    return rows[np.sort(chosen)]


def _barcodes(mdata: MuData, source: str, anchors: str | pd.Series | np.ndarray | Sequence[str]) -> pd.Index:
    """Barcodes from a boolean column, a boolean mask or a list."""
    if isinstance(anchors, str):
        column = obs_column(mdata, source, anchors)
        return column.index[_flags(column, f"Column {anchors!r}")]
    if isinstance(anchors, pd.Series) and anchors.index.isin(mdata.obs_names).all():
        return anchors.index[_flags(anchors, "The Series of anchors")]
    if not isinstance(anchors, pd.Series | pd.Index | np.ndarray | list | tuple):
        raise AnchorError(
            f"anchors= is a {type(anchors).__name__}; expected a number, an obs column, barcodes, a boolean mask over "
            "mdata.obs, or a table of (source_id, target_id)."
        )
    values = np.asarray(anchors)
    if values.dtype == bool:
        if values.shape != (mdata.n_obs,):
            raise AnchorError(f"The anchor mask has shape {values.shape}; mdata has {mdata.n_obs} cells.")
        return mdata.obs_names[values]
    if values.ndim != 1 or (values.size and values.dtype.kind not in "OUS"):
        raise AnchorError(
            f"anchors= is an array of {values.dtype} with shape {values.shape}; expected barcodes, a boolean mask over "
            "mdata.obs, or a table of (source_id, target_id)."
        )
    return pd.Index(values.astype(str))


def _flags(column: pd.Series, name: str) -> np.ndarray:
    flags = read_flags(column)
    if flags is None:
        raise AnchorError(f"{name} is {column.dtype}; expected booleans that mark the anchor cells.")
    return flags


def _from_barcodes(mdata: MuData, source: str, target: str, barcodes: pd.Index) -> np.ndarray:
    table = pd.DataFrame({"source_id": barcodes, "target_id": barcodes})
    return _from_table(mdata, source, target, table)


def _from_table(mdata: MuData, source: str, target: str, frame: pd.DataFrame) -> np.ndarray:
    if not {"source_id", "target_id"} <= set(frame.columns):
        # Columns without names go by their position; with other names, nothing says which is which.
        if list(frame.columns) != [0, 1]:
            raise AnchorError(
                f"The anchor table has columns {list(frame.columns)}; expected source_id and target_id, or an array of "
                "two columns."
            )
        frame = frame.set_axis(["source_id", "target_id"], axis=1)
    columns = []
    for name, key in ((source, "source_id"), (target, "target_id")):
        wanted = frame[key].astype(str)
        rows = mdata.mod[name].obs_names.get_indexer(wanted)
        if (rows < 0).any():
            lost = wanted[rows < 0]
            raise AnchorError(
                f"{len(lost)} of {len(frame)} anchors are not cells of {name!r}, the first {lost.iloc[0]!r}; check the "
                f"spelling and suffix against mdata[{name!r}].obs_names."
            )
        columns.append(rows)
    return np.column_stack(columns).astype(np.int64)


def _check_train(mdata: MuData, name: str, rows: np.ndarray, train: np.ndarray | None) -> None:
    outside = rows[~train[rows]] if train is not None else rows[:0]
    if len(outside):
        barcode = mdata.mod[name].obs_names[outside[0]]
        raise AnchorError(
            f"{len(outside)} anchors are not training cells of {name!r}, the first {barcode!r}. Anchors are seen in "
            "training: take them from the training cells, or widen train=."
        )


def _check_once(mdata: MuData, name: str, rows: np.ndarray) -> None:
    unique, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        barcode = mdata.mod[name].obs_names[unique[counts > 1][0]]
        raise AnchorError(
            f"Cell {barcode!r} of {name!r} occurs in {counts.max()} anchor pairs; it has one partner at most."
        )
