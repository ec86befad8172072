"""What anchors can settle, and which cells to co-assay next: symmetries of the source cells decide.

Matching distributions leaves open every map of the source cells onto themselves: f and f o h fit equally well. Anchors
settle the matter only where h moves them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer import pp
from celltransfer.data import cells, writeback
from celltransfer.data.anchors import AnchorsLike, resolve_anchors
from celltransfer.errors import AnchorError, ConfigError, InputError, ModalityError
from celltransfer.verdict.symmetries import Automorphism, breaks, choose, evidence, find, informativeness, relevant

if TYPE_CHECKING:
    from mudata import MuData

    from celltransfer.data.pair import Matrix
    from celltransfer.pp import Recipe

logger = logging.getLogger("celltransfer")

CAVEAT = (
    "Searched are turns and reflections of the leading components and swaps of separated clusters; finding none, or "
    "none unbroken, does not prove that the map is identified."
)
# Name of the cells of an AnnData in messages.
_CELLS = "cells"


@dataclass(frozen=True, eq=False)
class AnchorReport:
    """What a set of anchors can and cannot settle.

    Attributes
    ----------
    automorphisms
        One row per symmetry of the source cells, the largest first: ``kind``, ``label``, ``size`` (mean squared
        movement over the variance; 4 for a point reflection), ``match`` (share of random halves of the cells that
        differ as much as moved and unmoved cells do), ``displacement`` (root of the summed squares of the anchors'
        displacements, relative to the typical one), ``threshold`` (what it takes to break it), ``broken``.
    identifies
        Whether the anchors break every symmetry found of size 0.2 and more.
    scores
        Informativeness of each anchor by barcode: 0 where it breaks none of these symmetries, 1 where it breaks each
        as well as a typical cell does; NaN where there is none.
    source
        Name of the source modality.
    n_cells
        Number of source cells.
    """

    automorphisms: pd.DataFrame
    identifies: bool
    scores: pd.Series
    source: str
    n_cells: int

    @property
    def unbroken(self) -> pd.DataFrame:
        """The symmetries of size 0.2 and more that the anchors leave open."""
        table = self.automorphisms
        return table[table["relevant"] & ~table["broken"]]

    def summary(self) -> list[str]:
        """What the anchors settle, in sentences."""
        k, table = len(self.scores), self.automorphisms
        n = int(table["relevant"].sum())
        lines = [f"{k} anchor{'' if k == 1 else 's'} among {self.n_cells} cells of {self.source!r}."]
        if n == 0:
            lines.append("The cells have no symmetry of relevant size among those searched: there is none to break.")
        elif self.identifies:
            lines.append(f"All symmetries found ({n}) are broken, the {table['label'].iloc[0]} among them.")
        else:
            left = list(self.unbroken["label"])
            lines.append(
                f"Left open: {len(left)} of {n} symmetries, so that matching the target cells cannot tell the map from "
                f"one turned by them: {'; '.join(left[:3])}{'; ...' if len(left) > 3 else ''}."
            )
            lines.append("celltransfer.anchors.suggest names cells that break them.")
        return [*lines, CAVEAT]

    def __repr__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        from html import escape

        lines = "<br>".join(escape(line) for line in self.summary())
        table = "" if self.automorphisms.empty else self.automorphisms.to_html(float_format="{:.2f}".format)
        return f"<p>{lines}</p>{table}"


def assess(
    data: MuData | AnnData,
    *,
    source: str | None = None,
    target: str | None = None,
    anchors: AnchorsLike = None,
    recipe: str | Recipe = "auto",
    seed: int = 0,
) -> AnchorReport:
    """Say which symmetries of the source cells a set of anchors breaks, before any model is fitted.

    Only source cells are looked at, in the features that `celltransfer.fit` would learn from. See
    `celltransfer.verdict.symmetries.find` for what is searched and `breaks` for what counts as broken.

    Parameters
    ----------
    data
        MuData, or an AnnData of source cells. Not changed.
    source, target
        Names of the modalities, as in `celltransfer.fit`. For an AnnData neither is needed.
    anchors
        In any form that `celltransfer.fit` takes; ``None`` means all co-assayed cells, and has to be said otherwise
        for an AnnData.
    recipe
        Preprocessing of the source, fitted on all its cells.
    seed
        Seed of the search, and of the draw where `anchors` is a number.

    Returns
    -------
    AnchorReport

    Raises
    ------
    AnchorError
        The anchors are not cells, or not co-assayed.

    Examples
    --------
    >>> import celltransfer as ct
    >>> mdata = ct.datasets.simulate(n_obs=300, n_genes=60, n_peaks=90, seed=0)
    >>> report = ct.anchors.assess(mdata, source="rna", anchors=30)
    >>> report.identifies, len(report.scores)
    (True, 30)
    """
    mdata, source, target = _sides(data, source, target)
    rows = _rows(mdata, source, target, anchors, seed)
    x = _features(mdata, source, recipe)
    points = x[rows]
    found = find(x, seed=seed)
    wanted = relevant(found)
    broken = [breaks(h, points) for h in found]
    table = _table(found, [evidence(h, points) for h in found], broken)
    names = mdata.mod[source].obs_names[rows]
    scores = pd.Series(informativeness(wanted, points), index=names, name="informativeness")
    identifies = bool((table["broken"] | ~table["relevant"]).all())
    return AnchorReport(table, identifies, scores, source, int(x.shape[0]))


def suggest(
    data: MuData | AnnData,
    *,
    source: str | None = None,
    target: str | None = None,
    n: int = 10,
    given: AnchorsLike = 0,
    among: cells.CellSelection = None,
    recipe: str | Recipe = "auto",
    key_added: str = "anchor_informativeness",
    seed: int = 0,
    copy: bool = False,
) -> pd.Index | tuple[MuData | AnnData, pd.Index]:
    """Name the source cells that are worth co-assaying next.

    They are chosen greedily: first those that break the symmetries which `given` anchors leave open, then those that
    stand for the most cells that no anchor is near to. Where no symmetry is found the second rule alone decides, and
    the log says so.

    Parameters
    ----------
    data
        MuData, or an AnnData of source cells.
    source, target
        Names of the modalities, as in `celltransfer.fit`; `target` is needed only to look up `given` pairs.
    n
        Number of cells.
    given
        Anchors that exist already, in any form that `celltransfer.fit` takes; 0: none, ``None``: all co-assayed cells.
    among
        Cells that can be co-assayed: an obs column, a boolean mask or barcodes. ``None``: all source cells.
    recipe
        Preprocessing of the source, fitted on all its cells.
    key_added
        Column of the source's obs that is written.
    seed
        Seed of the search.
    copy
        Write into a copy, which is returned with the barcodes.

    Returns
    -------
    pandas.Index or tuple
        Barcodes, the most informative first; with ``copy=True`` the copy and the barcodes. Written to the obs of the
        source:

        ``obs[key_added]`` : pandas.Series (float)
            Mean over the symmetries that `given` leaves open, weighted by size, of min(1, displacement of the cell
            relative to the typical one): at 0, an anchor there breaks none of them. NaN where none is open.

    Raises
    ------
    ConfigError
        More cells are wanted than there are.
    InputError
        `data` is a view, which cannot be written to.

    Examples
    --------
    >>> import celltransfer as ct
    >>> mdata = ct.datasets.simulate(n_obs=300, n_genes=60, n_peaks=90, seed=0)
    >>> barcodes = ct.anchors.suggest(mdata, source="rna", n=5)
    >>> len(barcodes), "anchor_informativeness" in mdata["rna"].obs
    (5, True)
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ConfigError(f"n={n!r}; expected a number of cells, 1 or more.")
    if data.is_view and not copy:
        raise InputError("The data are a view, which cannot take a new obs column: pass data.copy(), or copy=True.")
    mdata, source, target = _sides(data, source, target)
    old = _rows(mdata, source, target, given, seed)
    x = _features(mdata, source, recipe)
    wanted = relevant(find(x, seed=seed))
    left = [h for h in wanted if not breaks(h, x[old])]
    chosen = choose(x, n, wanted, given=old, among=np.flatnonzero(cells.select_cells(mdata, source, among)), seed=seed)
    logger.info(_reason(n, len(wanted), len(left)))
    out = data if not copy else data.copy() if isinstance(data, AnnData) else writeback.copy_of(data)
    adata = out if isinstance(out, AnnData) else out.mod[source]
    adata.obs[key_added] = informativeness(left, x)
    barcodes = adata.obs_names[chosen]
    return (out, barcodes) if copy else barcodes


def _sides(data: Any, source: str | None, target: str | None) -> tuple[Any, str, str]:
    """What holds the cells, in the shape of a MuData, and the two names; one name twice where there is no target."""
    if isinstance(data, AnnData):
        name = source or _CELLS
        holder = SimpleNamespace(mod={name: data}, obs=data.obs, obs_names=data.obs_names, n_obs=data.n_obs)
        if target not in (None, name):
            raise ModalityError(f"target={target!r}, and an AnnData has one modality; pass a MuData.")
        return holder, name, name
    cells.check_mudata(data)
    source, target = cells.choose_modalities(data, source, target) if len(data.mod) > 1 else (next(iter(data.mod)),) * 2
    return data, source, target


def _rows(mdata: Any, source: str, target: str, anchors: AnchorsLike, seed: int) -> np.ndarray:
    """Rows of the anchors among the source cells, shape (k,)."""
    if source == target:
        if anchors is None:
            raise AnchorError("The data have one modality, so no cell is known to be co-assayed: pass anchors=.")
        if isinstance(anchors, str | pd.Series):
            # An obs column of the cells themselves; their barcodes need not be real ones.
            anchors = cells.select_cells(mdata, source, anchors)
    return resolve_anchors(mdata, source, target, anchors, seed=seed).rows[:, 0]


def _features(mdata: Any, source: str, recipe: str | Recipe) -> Matrix:
    adata = cells.check_cells(mdata.mod[source], f"mdata[{source!r}]")
    return pp.resolve(recipe, source, adata).fit(adata).transform(adata)


def _table(found: list[Automorphism], moved: list[float], broken: list[bool]) -> pd.DataFrame:
    large = relevant(found)
    return pd.DataFrame(
        {
            "kind": pd.Series([h.kind for h in found], dtype=str),
            "label": pd.Series([h.label for h in found], dtype=str),
            "size": pd.Series([h.size for h in found], dtype=float),
            "match": pd.Series([h.match for h in found], dtype=float),
            "displacement": pd.Series(moved, dtype=float),
            "threshold": pd.Series([h.threshold for h in found], dtype=float),
            "relevant": pd.Series([h in large for h in found], dtype=bool),
            "broken": pd.Series(broken, dtype=bool),
        }
    )


def _reason(n: int, found: int, left: int) -> str:
    if not found:
        return f"No symmetry was found among those searched: the {n} cells are chosen to stand for the others. {CAVEAT}"
    if not left:
        return (
            f"The given anchors break all symmetries found ({found}): the {n} cells are chosen to stand for the others."
        )
    return f"The {n} cells are chosen to break {left} of {found} symmetries, and to stand for the others."
