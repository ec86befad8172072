"""Reading a matrix out of AnnData: which slot, in which feature order, in blocks of cells. Nothing is modified."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from celltransfer.errors import CelltransferWarning, FeatureError, InputError, ModalityError
from celltransfer.pp.checks import Scale, check_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from celltransfer.data.pair import Matrix

BLOCK = 8192
# Share of missing features from which on taking them as 0 is worth a warning.
MANY_MISSING = 0.2
OnMissing = Literal["error", "zero"]


@dataclass(frozen=True)
class Slot:
    """The place in an AnnData that a recipe reads.

    Attributes
    ----------
    layer
        Key of `layers`; ``None`` reads `X`.
    use_rep
        Key of `obsm` that is read instead.
    modality
        Name of the modality, for messages only.
    """

    layer: str | None = None
    use_rep: str | None = None
    modality: str | None = None

    def __str__(self) -> str:
        owner = "adata" if self.modality is None else f"mdata[{self.modality!r}]"
        if self.use_rep is not None:
            return f"{owner}.obsm[{self.use_rep!r}]"
        return f"{owner}.X" if self.layer is None else f"{owner}.layers[{self.layer!r}]"

    def features(self, adata: AnnData) -> pd.Index:
        """Names of the features, unique; generated for an `obsm` without column names."""
        if self.use_rep is None:
            names = adata.var_names
        else:
            values = self._matrix(adata)
            named = isinstance(values, pd.DataFrame)
            names = values.columns if named else [f"{self.use_rep}_{i}" for i in range(values.shape[1])]
        index = pd.Index(names).astype(str)
        if not index.is_unique:
            twice = index[index.duplicated()]
            raise FeatureError(
                f"`{self}` has {len(twice)} duplicated feature names, e.g. {twice[0]!r}; they must be unique. "
                "Call `adata.var_names_make_unique()`."
            )
        return index

    def var(self, adata: AnnData) -> pd.DataFrame:
        """Annotation of the features: `var`, or an empty frame for an `obsm`."""
        return pd.DataFrame(index=self.features(adata)) if self.use_rep is not None else adata.var

    def blocks(self, adata: AnnData, scale: Scale, fitted: pd.Index | None, on_missing: OnMissing) -> Iterator[Matrix]:
        """Checked float32 blocks of at most 8192 cells, CSR or dense as stored, columns in the order of `fitted`."""
        features = self.features(adata)
        columns = None if fitted is None or features.equals(fitted) else self._columns(features, fitted, on_missing)
        # anndata cannot slice a view of a backed object again: such a view is read at once
        on_disk = adata.isbacked and not adata.is_view and self.layer is None and self.use_rep is None
        matrix: Any = None if on_disk else self._matrix(adata)
        matrix = matrix.tocsr() if hasattr(matrix, "tocsr") else matrix  # once, not for every block
        for start in range(0, max(adata.n_obs, 1), BLOCK):
            rows = slice(start, start + BLOCK)
            block = _float32(adata[rows].X if matrix is None else _rows(matrix, rows), str(self))
            check_values(block, scale, str(self), adata.obs_names[rows], features)
            yield block if columns is None else _take(block, columns)

    def _matrix(self, adata: AnnData) -> Any:
        """The whole matrix as stored."""
        if self.use_rep is not None:
            return _lookup(adata.obsm, self.use_rep, "obsm", self)
        matrix = adata.X if self.layer is None else _lookup(adata.layers, self.layer, "layers", self)
        if matrix is None:
            raise ModalityError(f"`{self}` is empty (None); expected a matrix. Pass `layer=...` or `use_rep=...`.")
        return matrix

    def _columns(self, have: pd.Index, want: pd.Index, on_missing: OnMissing) -> np.ndarray:
        """Column of `have` for every feature of `want`; -1 where it is missing and may be."""
        columns = have.get_indexer(want)
        missing = want[columns < 0]
        if len(missing) == len(want):
            raise FeatureError(
                f"`{self}` has none of the {len(want)} features this recipe was fitted on: it has {str(have[0])!r}, "
                f"the recipe knows {str(want[0])!r}. None in common: another modality, or other identifiers (symbols "
                "against Ensembl ids)?"
            )
        if len(missing) and on_missing == "error":
            some = ", ".join(repr(str(name)) for name in missing[:3])
            raise FeatureError(
                f"`{self}` lacks {len(missing)} of the {len(want)} features this recipe was fitted on, e.g. {some}. "
                "Add them, or take them as 0: `model.translate(..., on_missing='zero')`, or `--on-missing zero` on the "
                "command line; no new fit is needed."
            )
        if len(missing) > MANY_MISSING * len(want):
            warnings.warn(
                f"`{self}` lacks {len(missing)} of the {len(want)} features this recipe was fitted on, e.g. "
                f"{str(missing[0])!r}; they are taken as 0.",
                CelltransferWarning,
                stacklevel=2,
            )
        return columns


def concatenate(blocks: Iterator[Matrix]) -> Matrix:
    """Stack blocks of cells; the result shares no memory with them."""
    parts: list[Any] = list(blocks)
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)


def _lookup(mapping: Any, key: str, name: str, slot: Slot) -> Any:
    if key not in mapping:
        have = ", ".join(repr(k) for k in mapping if k is not None) or "nothing"
        raise ModalityError(f"There is no `{slot}`; `{name}` holds {have}.")
    return mapping[key]


def _rows(matrix: Any, rows: slice) -> Any:
    return matrix.iloc[rows].to_numpy() if isinstance(matrix, pd.DataFrame) else matrix[rows]


def _float32(block: Any, slot: str) -> Matrix:
    """Dense or canonical CSR, float32."""
    values: Any = block if hasattr(block, "tocsr") else np.asarray(block)
    if values.dtype.kind not in "biuf" or values.ndim != 2:
        raise InputError(
            f"`{slot}` has dtype {values.dtype} and {values.ndim} dimensions; expected a matrix of numbers. "
            "Convert it with `.astype('float32')`."
        )
    if isinstance(values, np.ndarray):
        return values.astype(np.float32, copy=False)
    csr = sp.csr_matrix(values, dtype=np.float32)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def _take(block: Matrix, columns: np.ndarray) -> Matrix:
    """Columns of `block` by number, 0 for -1."""
    present = np.flatnonzero(columns >= 0)
    if len(present) == len(columns):
        return block[:, columns]
    if not sp.issparse(block):
        out = np.zeros((block.shape[0], len(columns)), dtype=np.float32)
        out[:, present] = block[:, columns[present]]
        return out
    part = block[:, columns[present]]
    return sp.csr_matrix((part.data, present[part.indices], part.indptr), shape=(block.shape[0], len(columns)))
