"""Cells of one modality under two conditions, as two modalities that share their features."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data.cells import check_cells, column_labels, known_label
from celltransfer.data.writeback import no_pull
from celltransfer.errors import CelltransferWarning, ConditionError, FeatureError, InputError
from celltransfer.pp.factories import resolve

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from celltransfer.pp.recipe import Recipe


# What a recipe remembers of its cells without using it.
ANNOTATION = ("var", "n_cells")
logger = logging.getLogger("celltransfer")


def conditions(adata: AnnData, key: str, source: object, target: object) -> MuData:
    """The cells of two conditions as a MuData, to translate one condition into the other within one modality.

    Parameters
    ----------
    adata
        Cells of one modality.
    key
        Column of `obs`.
    source, target
        Values of it; 3, 3.0, "3" and "3.0" are the same, and True and "true". Cells with other values are left out,
        with a warning those with none.

    Returns
    -------
    MuData
        Two modalities, named by the values, that hold copies of the cells. No cell is in both, so there are no anchors.
        Fit it with one recipe for both, ``celltransfer.fit(mdata, recipes="rna", anchors=0, method="dont")``.

    Raises
    ------
    InputError
        `adata` is no AnnData, is empty, or two cells have one barcode.
    ConditionError
        There is no such column, or a value has no cell or is none that can name a modality.

    Examples
    --------
    >>> import celltransfer as ct
    >>> rna = ct.datasets.simulate(n_obs=300, n_genes=60, n_peaks=90, seed=0)["rna"]
    >>> cells = ct.pp.conditions(rna, "cell_type", *sorted(set(rna.obs["cell_type"]))[:2])
    >>> len(cells.mod)
    2
    """
    from anndata import AnnData
    from mudata import MuData

    if not isinstance(adata, AnnData):
        raise InputError(f"Expected an AnnData and got {type(adata).__name__}; pass one modality, mdata['rna'].")
    if key not in adata.obs:
        raise ConditionError(f"There is no column {key!r} in obs, which has {', '.join(map(str, adata.obs))}.")
    check_cells(adata)
    labels = column_labels(adata.obs[key])
    known = sorted(labels.dropna().unique())
    parts = {}
    for value in (source, target):
        name = known_label([value], known)
        if name is None:
            raise ConditionError(f"No cell has {key}={value!r}; there are {', '.join(map(repr, known[:10]))}.")
        if "/" in name:
            raise ConditionError(f"{name!r} cannot name a modality, because of the '/'; rename it in obs[{key!r}].")
        part = adata[(labels == name).to_numpy()]
        parts[name] = part.to_memory() if adata.isbacked else part.copy()
    if len(parts) < 2:
        raise ConditionError(f"source and target are both {name!r}.")
    if labels.isna().any():
        warnings.warn(
            f"{labels.isna().sum()} of {len(labels)} cells have no value in obs[{key!r}] and are left out.",
            CelltransferWarning,
            stacklevel=2,
        )
    with no_pull():
        return MuData(parts)


def fit_recipes(
    recipes: Mapping[str, str | Recipe] | str | Recipe | None, training: Mapping[str, AnnData]
) -> dict[str, Recipe]:
    """Recipes by modality, fitted on its training cells; a single recipe is fitted once, on the cells of all together.

    Where none is named and both modalities have the same feature names and are found to be of one kind, that is a
    single recipe, too.

    Raises
    ------
    FeatureError
        A single recipe, and modalities with different features.
    """
    if recipes is None or isinstance(recipes, Mapping):
        named = recipes or {}
        resolved = {name: resolve(named.get(name, "auto"), name, adata) for name, adata in training.items()}
        if not _alike(*resolved.values()) or not _same_features(*training.values()):
            return {name: recipe.fit(training[name]) for name, recipe in resolved.items()}
        first = next(iter(resolved))
        if named:
            warnings.warn(
                f"{' and '.join(map(repr, training))} have the same features, and a recipe is fitted to each: their "
                f"components differ. recipes={resolved[first].kind!r} fits one for both.",
                CelltransferWarning,
                stacklevel=3,
            )
            return {name: recipe.fit(training[name]) for name, recipe in resolved.items()}
        logger.info("Modalities %s have the same features: one recipe for both.", " and ".join(map(repr, training)))
        recipes = resolved[first]
    (first, one), (second, other) = training.items()
    if recipes != "auto":
        resolve(recipes, first, one)  # there is such a recipe
    apart = one.var_names.symmetric_difference(other.var_names)
    if len(apart):
        raise FeatureError(
            f"One recipe for both needs the same features in both; {first!r} and {second!r} differ in {len(apart)}, "
            f"the first {apart[0]!r}. Pass a mapping with a recipe for each."
        )
    from anndata import concat

    parts = [part.to_memory() if part.isbacked else part for part in (one, other)]
    both = concat([parts[0], parts[1][:, one.var_names]], merge="same")
    recipe = resolve(recipes, first, both).fit(both)
    return {first: recipe, second: recipe}


def _alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes do the same, whatever modality they are for."""
    configs = [recipe.get_config() | {"modality": None} for recipe in (one, other)]
    return configs[0] == configs[1]


def _same_features(one: AnnData, other: AnnData) -> bool:
    """Whether features have the same names; numbers are no names."""
    numbered = one.var_names.astype(str).str.fullmatch(r"\d+").any()
    return len(one.var_names.symmetric_difference(other.var_names)) == 0 and not numbered


def is_shared(one: Recipe, other: Recipe) -> bool:
    """Whether two fitted recipes give the same features."""
    if one is other:
        return True
    states = [
        {name: value for name, value in recipe.get_state().items() if name not in ANNOTATION} for recipe in (one, other)
    ]
    return (
        _alike(one, other)
        and states[0].keys() == states[1].keys()
        and all(np.array_equal(value, states[1][name]) for name, value in states[0].items())
    )
