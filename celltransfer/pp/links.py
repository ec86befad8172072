"""Feature links: which source feature stands behind which target feature, and the map between modalities they imply."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from celltransfer.errors import FeatureError
from celltransfer.pp.transforms import moments

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.data.pair import Matrix
    from celltransfer.pp import Recipe

logger = logging.getLogger("celltransfer")

# How links may be given: a column of var, a table of names, or a matrix (source features, target features).
LinksLike = str | pd.DataFrame | sp.csr_matrix | sp.csr_array | None
_EXAMPLES = 3
# Share of the links below which so few join that names are more likely wrong than features left out.
FEW_JOIN = 0.05


def read_links(links: LinksLike, source: AnnData, target: AnnData) -> pd.DataFrame:
    """Links as a table of ``source``, ``target`` (feature names) and ``weight``, one row per link.

    Parameters
    ----------
    links
        Column of the target's `var` that names the source feature behind every target feature (or of the source's that
        names the target feature); a table with columns ``source``, ``target`` and, if wanted, ``weight``; or a sparse
        matrix of weights, shape (source features, target features). Links given more than once add up.
    source, target
        The modalities.

    Raises
    ------
    FeatureError
        There is no such column, the table or matrix has another form, or weights are not finite.
    """
    if isinstance(links, str):
        table = _of_column(links, source, target)
    elif isinstance(links, pd.DataFrame):
        table = _of_table(links)
    elif sp.issparse(links):
        table = _of_matrix(links, source, target)
    else:
        raise FeatureError(
            f"links= is a {type(links).__name__}; expected a column of var, a table with columns source and target, or "
            "a sparse matrix (source features x target features)."
        )
    weights = table["weight"].to_numpy(dtype=np.float64)
    if not np.isfinite(weights).all():
        raise FeatureError(f"{int((~np.isfinite(weights)).sum())} of {len(table)} links have no finite weight.")
    if len(weights) and not weights.any():
        raise FeatureError(f"All {len(weights)} links have weight 0, which says nothing; leave them out.")
    return table[weights != 0].reset_index(drop=True)


def linked_map(
    table: pd.DataFrame, recipes: tuple[Recipe, Recipe], cells: tuple[AnnData, AnnData], names: tuple[str, str]
) -> Matrix:
    r"""What links alone say of the map between the translators' features, shape (d, D).

    A target feature is expected as many standard deviations from its mean as the features linked to it are from theirs,
    on average. With B the way back from source components to normalised features, F the way forth of the target,
    standard deviations :math:`\sigma`, and S the links with columns of absolute sum 1, that is

    .. math:: B \,\mathrm{diag}(\sigma_x)^{-1} \, S \,\mathrm{diag}(\sigma_y) \, F.

    S stays sparse, and so does the product where neither recipe reduces. Only its direction counts: how much of a
    target feature follows its links has to be learned.

    Parameters
    ----------
    table
        From `read_links`.
    recipes
        Fitted recipes of source and target.
    cells
        Their training cells, for the standard deviations.
    names
        Names of the modalities, for messages.

    Raises
    ------
    FeatureError
        No link joins features that both recipes keep.
    """
    matrix = _matrix(table, recipes, names)
    spreads = [moments(recipe.normalize(adata))[1] for recipe, adata in zip(recipes, cells, strict=True)]
    per_source = np.divide(1, spreads[0], out=np.zeros_like(spreads[0]), where=spreads[0] > 0)
    per_target = spreads[1] / np.maximum(np.asarray(abs(matrix).sum(axis=0)).ravel(), 1e-300)
    scaled = sp.diags(per_source) @ matrix @ sp.diags(per_target)
    back, forth = recipes[0].slopes()[0], recipes[1].slopes()[1]
    found: Any = (back @ scaled) @ forth
    if any(recipe.reduces for recipe in recipes):
        return np.asarray(found, dtype=np.float32)
    return sp.csr_matrix(found, dtype=np.float32)


def _matrix(table: pd.DataFrame, recipes: tuple[Recipe, Recipe], names: tuple[str, str]) -> sp.csr_matrix:
    """Links between the features of both recipes, shape (p, q)."""
    kept = [recipe.feature_names_ for recipe in recipes]
    sides = [pd.Index(table[side]) for side in ("source", "target")]
    rows, columns = (index.get_indexer(side) for index, side in zip(kept, sides, strict=True))
    known = (rows >= 0) & (columns >= 0)
    if not known.any():
        found = [
            f"{int((at >= 0).sum())} name a feature that the recipe of {name!r} keeps (links have {_some(side)}, the "
            f"recipe {_some(index)})"
            for at, name, side, index in zip((rows, columns), names, sides, kept, strict=True)
        ]
        raise FeatureError(f"None of {len(table)} links joins {names[0]!r} and {names[1]!r}: {', '.join(found)}.")
    logger.log(
        logging.WARNING if known.mean() < FEW_JOIN else logging.INFO,
        "%d of %d links join features that both recipes keep; they reach %d of the %d features of %r.",
        known.sum(), len(table), len(np.unique(columns[known])), len(kept[1]), names[1],
    )  # fmt: skip
    weights = table["weight"].to_numpy(dtype=np.float64)[known]
    return sp.csr_matrix((weights, (rows[known], columns[known])), shape=(len(kept[0]), len(kept[1])))


def _of_column(name: str, source: AnnData, target: AnnData) -> pd.DataFrame:
    for own, other, adata in (("target", "source", target), ("source", "target", source)):
        if name in adata.var:
            column = adata.var[name].dropna()
            return pd.DataFrame({own: column.index.astype(str), other: column.astype(str).to_numpy(), "weight": 1.0})
    raise FeatureError(
        f"links={name!r} is no column of var: the target has {_some(target.var.columns)}, the source "
        f"{_some(source.var.columns)}."
    )


def _of_table(links: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in ("source", "target") if column not in links]
    if missing:
        raise FeatureError(f"The table of links lacks column {missing[0]!r}; it has {_some(links.columns)}.")
    table = links.dropna(subset=["source", "target"])
    found = pd.DataFrame({side: table[side].astype(str).to_numpy() for side in ("source", "target")})
    weight = table["weight"].to_numpy() if "weight" in table else np.ones(len(table))
    return found.assign(weight=pd.to_numeric(pd.Series(weight), errors="coerce").to_numpy(dtype=np.float64))


def _of_matrix(links: sp.csr_matrix | sp.csr_array, source: AnnData, target: AnnData) -> pd.DataFrame:
    expected = source.n_vars, target.n_vars
    if links.shape != expected:
        turned = " Transpose them." if links.shape == expected[::-1] else ""
        raise FeatureError(
            f"The links have shape {links.shape}; expected {expected}, source by target features.{turned}"
        )
    found = sp.coo_matrix(links)
    return pd.DataFrame(
        {
            "source": source.var_names.astype(str)[found.row],
            "target": target.var_names.astype(str)[found.col],
            "weight": found.data.astype(np.float64),
        }
    )


def _some(names: pd.Series | pd.Index) -> str:
    """The first few names."""
    return ", ".join(repr(str(name)) for name in list(dict.fromkeys(names))[:_EXAMPLES]) or "none"
