"""Reading cells out of a MuData: modalities, obs columns, training cells, conditions. Nothing here writes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.errors import AnchorError, CelltransferWarning, ConditionError, InputError, ModalityError

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

# Share of barcodes that look like row numbers from which on they are taken for such.
MOSTLY = 0.9
# How training cells may be named: an obs column, a boolean mask over ``mdata.obs``, or barcodes.
CellSelection = str | pd.Series | np.ndarray | Sequence[str] | None


def check_mudata(mdata: Any) -> None:
    """Raise unless `mdata` is a MuData whose modalities share observations."""
    from mudata import MuData

    if not isinstance(mdata, MuData):
        raise InputError(
            f"Expected a MuData and got {type(mdata).__name__}. Two AnnData become one by "
            'MuData({"rna": rna, "atac": atac}).'
        )
    if getattr(mdata, "axis", 0) != 0:
        raise InputError(f"The MuData has axis={mdata.axis}; modalities must share cells (axis=0).")


def choose_modalities(mdata: MuData, source: str | None, target: str | None) -> tuple[str, str]:
    """Names of source and target; with two modalities and no names given, the first is translated to the second."""
    names = list(mdata.mod)
    if len(names) < 2:
        raise ModalityError(f"The MuData has {len(names)} modality ({', '.join(names)}); translation needs two.")
    for role, name in (("source", source), ("target", target)):
        if name is not None and name not in names:
            raise ModalityError(f"There is no modality {name!r} for {role}=. The MuData has {', '.join(names)}.")
    # Earlier translations stay in the MuData; they are not what is meant by "the two modalities".
    measured = [name for name in names if "celltransfer" not in mdata.mod[name].uns]
    if len(measured) != 2 and (source is None or target is None):
        raise ModalityError(
            f"The MuData has {len(measured)} modalities ({', '.join(measured)}): say source= and target=."
        )
    if source is None:
        source = next(name for name in measured if name != target)
    if target is None:
        target = next(name for name in measured if name != source)
    if source == target:
        raise ModalityError(f"source and target are both {source!r}.")
    return source, target


def check_modality(mdata: MuData, name: str) -> AnnData:
    """The modality as AnnData, with cells, features and unique barcodes."""
    check_mudata(mdata)
    if name not in mdata.mod:
        raise ModalityError(f"The MuData has no modality {name!r}: {', '.join(mdata.mod)}.")
    return check_cells(mdata.mod[name], f"mdata[{name!r}]")


def check_cells(adata: Any, what: str = "The AnnData") -> AnnData:
    """The AnnData, if it is one with cells, features and unique barcodes."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise ModalityError(f"{what} is a {type(adata).__name__}; expected an AnnData.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ModalityError(f"{what} is empty: {adata.n_obs} cells x {adata.n_vars} features.")
    duplicated = adata.obs_names[adata.obs_names.duplicated()]
    if len(duplicated):
        raise InputError(
            f"{what} has {len(duplicated)} duplicated barcodes, the first {duplicated[0]!r}. Cells are told apart by "
            "barcode: make them unique, for example with obs_names_make_unique()."
        )
    return adata


def coassayed(mdata: MuData, source: str, target: str) -> np.ndarray:
    """Rows (i, j) of the cells measured in both modalities, shape (n, 2), in source order.

    Cells are the same when they share a row of ``mdata.obs``, that is, a barcode (MuData's ``obsmap``).
    """
    names = mdata.mod[source].obs_names
    partner = mdata.mod[target].obs_names.get_indexer(names)
    rows = np.flatnonzero(partner >= 0)
    return np.column_stack([rows, partner[rows]]).astype(np.int64)


def take(adata: AnnData, mask: np.ndarray) -> AnnData:
    """The cells of `mask`; on disk only as long as all of them are wanted (a backed view cannot be read in blocks)."""
    if mask.all():
        return adata
    part = adata[mask]
    return part.to_memory() if adata.isbacked else part


def check_real_barcodes(mdata: MuData, source: str, target: str, argument: str = "anchors") -> None:
    """Refuse row numbers as barcodes: two unpaired AnnData without names would look fully co-assayed."""
    for name in (source, target):
        names = mdata.mod[name].obs_names
        # Filtering and concatenating leave gaps and suffixes: "17", "17-0", "17-rna".
        numbers = names.astype(str).str.fullmatch(r"\d+([-_]\w+)?")
        if np.mean(numbers) > MOSTLY:
            raise AnchorError(
                f"The barcodes of mdata[{name!r}] are row numbers such as {names[0]!r}, so that unrelated cells of "
                f"{source!r} and {target!r} would count as co-assayed. Set real barcodes, or pass {argument}= as a "
                "table of (source_id, target_id)."
            )


def obs_column(mdata: MuData, modality: str, key: str) -> pd.Series:
    """Column `key` for the cells of one modality, from its own obs or from ``mdata.obs``."""
    adata = mdata.mod[modality]
    if key in adata.obs:
        return adata.obs[key]
    for name in (key, f"{modality}:{key}"):
        if name in mdata.obs:
            return mdata.obs[name].reindex(adata.obs_names)
    raise ConditionError(
        f"There is no column {key!r} for the cells of {modality!r}: mdata[{modality!r}].obs and mdata.obs lack it."
    )


def select_cells(mdata: MuData, modality: str, cells: CellSelection) -> np.ndarray:
    """Boolean mask, shape (n cells of `modality`,), of the cells that `cells` names.

    `cells` is ``None`` (all), a boolean obs column (a column that holds "train" selects those rows), a boolean
    mask over ``mdata.obs``, or a list of barcodes.
    """
    names = mdata.mod[modality].obs_names
    if cells is None:
        return np.ones(len(names), dtype=bool)
    if isinstance(cells, str):
        return _flags(obs_column(mdata, modality, cells), cells, modality)
    if isinstance(cells, pd.Series) and pd.api.types.is_bool_dtype(cells.dtype):
        return cells.reindex(names).fillna(False).to_numpy(dtype=bool)
    values = np.asarray(cells if isinstance(cells, pd.Series | np.ndarray | pd.Index) else list(_listed(cells)))
    if values.dtype == bool:
        if values.shape != (mdata.n_obs,):
            raise InputError(f"The mask of training cells has shape {values.shape}; mdata has {mdata.n_obs} cells.")
        return pd.Series(values, index=mdata.obs_names).reindex(names).to_numpy(dtype=bool)
    unknown = pd.Index(values.astype(str)).difference(mdata.obs_names)
    if len(unknown):
        raise InputError(f"{len(unknown)} of {len(values)} barcodes are not in the MuData, the first {unknown[0]!r}.")
    return names.isin(values.astype(str))


def _listed(cells: object) -> Sequence[str]:
    if isinstance(cells, list | tuple | set):
        return tuple(cells)
    raise InputError(
        f"train= is a {type(cells).__name__}; expected an obs column, a boolean mask over mdata.obs, or barcodes."
    )


def _flags(column: pd.Series, key: str, modality: str) -> np.ndarray:
    if (column.astype("string") == "train").any():
        return (column.astype("string") == "train").fillna(False).to_numpy(dtype=bool)
    flags = read_flags(column)
    if flags is None:
        found = ", ".join(map(repr, column.dropna().unique()[:4]))
        raise InputError(
            f"Column {key!r} of {modality!r} holds {found}; expected booleans, or the word 'train' in the rows to use."
        )
    return flags


def read_flags(column: pd.Series) -> np.ndarray | None:
    """A column as booleans, missing as ``False``: booleans, 0 and 1, or their words; ``None`` if it is neither."""
    words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    known = column.astype("string").str.lower().map(words)
    if known[column.notna().to_numpy()].isna().any() or column.isna().all():
        return None
    return known.eq(True).fillna(False).to_numpy(dtype=bool)


def condition_labels(mdata: MuData, modality: str, keys: Sequence[str]) -> np.ndarray:
    r"""One label per cell: the values of `keys` joined by ``|`` (``\|`` inside a value), shape (n,), str."""
    parts = []
    for key in keys:
        column = obs_column(mdata, modality, key)
        missing = column.index[column.isna()]
        if len(missing):
            raise ConditionError(
                f"Condition {key!r} is missing for {len(missing)} cells of {modality!r}, the first {missing[0]!r}. "
                "A condition has to be known for every cell."
            )
        check_agreement(mdata, modality, key)
        parts.append(column_labels(column))
    return np.array([join_labels(labels) for labels in zip(*parts, strict=True)], dtype=str)


def check_agreement(mdata: MuData, modality: str, key: str) -> None:
    """Raise where a modality's own condition contradicts ``mdata.obs``; warn where it fills what that lacks."""
    if key not in mdata.mod[modality].obs or key not in mdata.obs:
        return
    own = column_labels(mdata.mod[modality].obs[key])
    shared = column_labels(mdata.obs[key].reindex(own.index))
    missing = shared.isna() & own.notna()
    other = own.index[shared.notna() & own.notna() & (own != shared)]
    if len(other):
        cell = other[0]
        raise ConditionError(
            f"Condition {key!r} has two values for {len(other)} cells of {modality!r}: cell {cell!r} is {own[cell]!r} "
            f"in mdata[{modality!r}].obs and {shared[cell]!r} in mdata.obs. Correct or drop one of the columns."
        )
    if missing.any():
        warnings.warn(
            f"Condition {key!r} is missing in mdata.obs for {missing.sum()} cells of {modality!r}, the first "
            f"{own.index[missing][0]!r}; it is taken from mdata[{modality!r}].obs.",
            CelltransferWarning,
            stacklevel=2,
        )


def condition_label(value: object) -> str:
    """A value of a condition as text; 3 and 3.0 are one, as pulling columns through ``mdata.obs`` makes floats."""
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def column_labels(column: pd.Series) -> pd.Series:
    """The values of a column as text, missing ones as ``None``; floats have the digits of their own precision."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        known = [*map(condition_label, column.cat.categories.array), None]
        labels = [known[code] for code in column.cat.codes]
    else:
        # The array keeps numpy's types, which Series.map makes Python's: a float32 of 0.1 is 0.10000000149011612 there.
        missing = column.isna()
        labels = [None if no else condition_label(value) for value, no in zip(column.array, missing, strict=True)]
    return pd.Series(labels, index=column.index, dtype=object)


def join_labels(labels: Sequence[str]) -> str:
    r"""The label of the values of one or more columns together, joined by ``|`` (``\|`` inside a value, and ``\\``)."""
    if len(labels) == 1:
        return labels[0]
    return "|".join(label.replace("\\", r"\\").replace("|", r"\|") for label in labels)


def split_labels(label: str, n_columns: int) -> list[str]:
    """Inverse of `join_labels`."""
    if n_columns == 1:
        return [label]
    parts, characters = [""], iter(label)
    for character in characters:
        if character == "|":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return parts


def known_label(values: Sequence[object], known: Container[str]) -> str | None:
    """The label of values, one of each column, as they are or as what their text means: "3.0" is 3, "true" True."""
    return next((label for label in map(join_labels, product(*map(_forms, values))) if label in known), None)


def _forms(value: object) -> list[str]:
    """The labels that a value may have, its own first."""
    forms = [condition_label(value)]
    text = forms[0].strip()
    if text.lower() in ("true", "false"):
        return [*forms, text.capitalize()]
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return forms
    if re.fullmatch(r"[+-]?\d+", text):  # a float has no room for long ones
        return [*forms, condition_label(int(text))]
    number = float(text)
    with np.errstate(over="ignore"):
        single = np.float32(number)
    # Python's float of a float32 has more digits than the float32 itself.
    return [*forms, condition_label(number), *([condition_label(single)] if float(single) == number else [])]


def attribute_codes(mdata: MuData, names: Sequence[str], key: str, masks: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Codes of column `key` for the selected cells of two modalities, in one coding; -1 where it is missing."""
    columns = [column_labels(obs_column(mdata, name, key)[masks[name]]) for name in names]
    codes, _ = pd.factorize(pd.concat(columns))
    return np.split(codes, [len(columns[0])])


def encode_conditions(labels: np.ndarray, conditions: Sequence[str], modality: str) -> np.ndarray:
    """Codes of `labels` in `conditions`, shape (n,), int64; unknown labels raise."""
    codes = pd.Index(conditions).get_indexer(pd.Index(labels))
    if (codes < 0).any():
        unknown = sorted({str(label) for label in labels[codes < 0]})
        raise ConditionError(
            f"The cells of {modality!r} have {'the condition' if len(unknown) == 1 else 'conditions'} "
            f"{', '.join(map(repr, unknown[:5]))}, unknown to the model; it knows {', '.join(map(repr, conditions))}."
        )
    return codes.astype(np.int64)
