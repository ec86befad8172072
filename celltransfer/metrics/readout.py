"""Cells of a model in a scoring space: what the verdict and the scorer look at, whatever the features of the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data.pair import dense
from celltransfer.metrics.space import ScoringSpace
from celltransfer.pp.transforms import totals
from celltransfer.verdict.evidence import Readout

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.pp import Recipe
    from celltransfer.verdict.evidence import Points

# Cells that the space is fitted on.
SPACE_CELLS = 3000
# From so many target features on, the way into the space is learned from some cells, and not computed for each.
WIDE, LEARNING_CELLS = 2000, 200
# Values that have a library size.
COUNTED = ("rna", "atac", "protein")


def of_recipes(source: Recipe, target: Recipe, cells: tuple[AnnData, AnnData], seed: int = 0) -> Readout:
    """The scoring space of the target's normalised scale, fitted on training cells.

    Parameters
    ----------
    source, target
        Fitted recipes.
    cells
        Training cells of both modalities, the rows of the pair that a translator was fitted on.
    seed
        Seed of the sample that the space is fitted on.
    """
    n = cells[1].n_obs
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:SPACE_CELLS])
    some = cells[1][rows]
    space = ScoringSpace.fit(target.normalize(some))

    def at(rows: np.ndarray) -> np.ndarray:
        return space.transform(target.normalize(cells[1][rows]))

    def place(features: np.ndarray) -> np.ndarray:
        return space.transform(target.inverse_transform(features))

    if len(target.feature_names_) > WIDE and target.reduces:
        learned = _affine(place, dense(target.transform(some[:LEARNING_CELLS])))
        return Readout(at, lambda features: features @ learned[:-1] + learned[-1], _depth(source, target, cells))
    return Readout(at, place, _depth(source, target, cells))


def _affine(place: Points, features: np.ndarray) -> np.ndarray:
    """The map into the space, shape (d + 1, q), which is affine but for clipping."""
    # Translations are nearer the mean than cells.
    features = np.vstack([features, (features + features.mean(axis=0)) / 2])
    ones = np.ones((len(features), 1))
    return np.linalg.lstsq(np.hstack([features, ones]).astype(np.float64), place(features), rcond=None)[0]


def _depth(source: Recipe, target: Recipe, cells: tuple[AnnData, AnnData]) -> tuple[Points, Points] | None:
    """Log library size of source and of target cells, by row, where both are counts."""
    if source.kind not in COUNTED or target.kind not in COUNTED:
        return None

    def of(recipe: Recipe, adata: AnnData) -> Points:
        def at(rows: np.ndarray) -> np.ndarray:
            blocks = recipe.slot.blocks(adata[rows], recipe.options.scale_, None, "error")
            return np.log1p(np.concatenate([totals(block) for block in blocks]))

        return at

    return of(source, cells[0]), of(target, cells[1])
