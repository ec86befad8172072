"""`celltransfer.alignment`: whether the cells a model translates are like target cells, as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from celltransfer.data import cells
from celltransfer.data.pair import dense
from celltransfer.verdict import alignment as metric

if TYPE_CHECKING:
    from mudata import MuData

    from celltransfer.data.pair import ModalityPair
    from celltransfer.model.model import TransferModel
    from celltransfer.translators.base import Translator

# Cells a side that are compared, and cells a side that training has not seen from which on they alone are evaluated.
MAX_CELLS, ENOUGH_UNSEEN = 1000, 200


def alignment(model: TransferModel, mdata: MuData, *, family: str = "auto", seed: int = 0) -> metric.Alignment:
    """Test whether translated source cells are alike the target cells of `mdata`; for any method.

    Alike means that they cannot be told apart as a whole: by refitted densities (the log-likelihood-ratio distance) or
    by a classifier, both on held-out cells and against splits of the target cells. That is what methods that match
    distributions aim at. It does not say that a cell was translated to the right place; and a conditional mean, such as
    ridge gives, has less spread than cells have and is told from them although it may be the best guess.

    Parameters
    ----------
    model
        A fitted model; ``model.backward`` tests the other direction.
    mdata
        Source and target cells. Where 200 of both were not seen by the fit (new ones, and those the method held out),
        these are evaluated; otherwise all are, and a method that matches distributions is never called aligned. A
        co-assayed cell stands on one side only. Of more than 1,000 cells a side a random sample is taken.
    family
        Densities of the distance: ``"gaussian"``, ``"mixture"``, ``"auto"`` or a flow; see
        `celltransfer.verdict.alignment`.
    seed
        Seed of samples, splits and fits.

    Returns
    -------
    Alignment
        ``.level`` is ``"aligned"``, ``"not aligned"`` or ``"cannot be told"``; ``.reasons``, ``.evidence``, ``.cause``.

    Raises
    ------
    ModalityError
        `mdata` lacks the source or the target modality.
    """
    for name in (model.source, model.target):
        cells.check_modality(mdata, name)
    rng = np.random.default_rng(seed)
    source, target = _sample(model, mdata, rng)
    translated = model.latent(mdata.mod[model.source][source.rows], mdata)
    actual = dense(model.recipes[model.target].transform(mdata.mod[model.target][target.rows]))
    enough = min(source.unseen.sum(), target.unseen.sum()) >= ENOUGH_UNSEEN
    held = (source.unseen, target.unseen) if enough else (None, None)
    found = metric.alignment(
        translated, actual, held_a=held[0], held_b=held[1], family=family, max_cells=MAX_CELLS, seed=seed
    )
    return found if enough or not model.translator.matches_distributions else _doubted(found)


def _doubted(found: metric.Alignment) -> metric.Alignment:
    """The same where the cells are those that the map was fitted to make alike, which no likeness proves."""
    reason = (
        f"Fewer than {ENOUGH_UNSEEN} cells of a side were not seen by the fit, so cells it saw were compared too: they "
        "may be alike where others are not."
    )
    level = "cannot be told" if found.level == "aligned" else found.level
    return replace(found, level=level, reasons=[*found.reasons, reason])


def of_fit(translator: Translator, pair: ModalityPair, seed: int) -> metric.Alignment:
    """The same for a translator that has just been fitted to `pair`, on the cells that it held out."""
    rng, sides = np.random.default_rng(seed), []
    for n, held in zip((pair.n_source, pair.n_target), translator.held_out_ or (None, None), strict=True):
        unseen = np.zeros(n, dtype=bool) if held is None else np.isin(np.arange(n), held)
        sides.append(_draw(unseen, rng))
    x, y = sides
    codes = None if pair.condition_x is None else pair.condition_x[x.rows]
    return metric.alignment(
        translator.translate(pair.x[x.rows], codes),
        dense(pair.y[y.rows]),
        held_a=x.unseen if x.unseen.any() else None,
        held_b=y.unseen if y.unseen.any() else None,
        max_cells=MAX_CELLS,
        seed=seed,
    )


class _Cells(NamedTuple):
    """Rows of a modality, and which of these the fit did not see."""

    rows: np.ndarray
    unseen: np.ndarray


def _sample(model: TransferModel, mdata: MuData, rng: np.random.Generator) -> tuple[_Cells, _Cells]:
    """Some cells of both modalities; a co-assayed cell stands on one side only, as pairs would pass for likeness."""
    names = [cells.check_modality(mdata, name).obs_names for name in (model.source, model.target)]
    both = names[0].intersection(names[1])
    drawn = rng.permutation(len(both))
    left_out = both[drawn[: len(both) // 2]], both[drawn[len(both) // 2 :]]
    found = []
    for name, own, out in zip((model.source, model.target), names, left_out, strict=True):
        unseen = ~own.isin(model.training_cells[name]) | own.isin(model.held_out_cells[name])
        found.append(_draw(np.asarray(unseen), rng, ~np.asarray(own.isin(out))))
    return found[0], found[1]


def _draw(unseen: np.ndarray, rng: np.random.Generator, among: np.ndarray | None = None) -> _Cells:
    """Some cells, unseen ones first: three times as many as are compared, as the null draws from target cells too."""
    order = rng.permutation(len(unseen) if among is None else np.flatnonzero(among))
    order = np.concatenate([order[unseen[order]], order[~unseen[order]]])[: 3 * MAX_CELLS]
    rows = np.sort(order)
    return _Cells(rows, unseen[rows])
