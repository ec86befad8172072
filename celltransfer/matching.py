"""`celltransfer.alignment`: whether the cells a model translates are like target cells, as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data import cells
from celltransfer.data.pair import dense
from celltransfer.errors import ModalityError
from celltransfer.metrics import alignment as metric

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from celltransfer.data.pair import ModalityPair
    from celltransfer.model import TransferModel
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
        Source and target cells. Cells that training has not seen are evaluated, where there are 200 of both; of more
        than 1,000 cells a side a random sample is taken.
    family
        Densities of the distance: ``"gaussian"``, ``"mixture"``, ``"auto"`` or a flow; see
        `celltransfer.metrics.alignment`.
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
    cells.check_mudata(mdata)
    for name in (model.source, model.target):
        if name not in mdata.mod:
            raise ModalityError(f"The model needs modality {name!r}, which the MuData lacks: {', '.join(mdata.mod)}.")
    rng = np.random.default_rng(seed)
    (source, unseen_x), (target, unseen_y) = (_sample(model, mdata, name, rng) for name in (model.source, model.target))
    translated = model.latent(source, mdata)
    actual = dense(model.recipes[model.target].transform(target))
    enough = min(unseen_x.sum(), unseen_y.sum()) >= ENOUGH_UNSEEN
    held = (unseen_x, unseen_y) if enough else (None, None)
    return metric.alignment(
        translated, actual, held_a=held[0], held_b=held[1], family=family, max_cells=MAX_CELLS, seed=seed
    )


def of_fit(translator: Translator, pair: ModalityPair, seed: int) -> metric.Alignment:
    """The same for a translator that has just been fitted to `pair`, on the cells that it held out."""
    held_x, held_y = (
        None if rows is None else np.isin(np.arange(n), rows)
        for rows, n in zip(translator.held_out_ or (None, None), (pair.n_source, pair.n_target), strict=True)
    )
    translated = translator.translate(pair.x, pair.condition_x)
    return metric.alignment(translated, dense(pair.y), held_a=held_x, held_b=held_y, max_cells=MAX_CELLS, seed=seed)


def _sample(model: TransferModel, mdata: MuData, name: str, rng: np.random.Generator) -> tuple[AnnData, np.ndarray]:
    """Some cells of a modality, unseen ones first, and which of them are unseen.

    Three times as many as are compared: the null takes two sets from target cells alone where it can.
    """
    adata = cells.check_modality(mdata, name)
    unseen = ~adata.obs_names.isin(model.training_cells[name])
    order = rng.permutation(adata.n_obs)
    order = np.concatenate([order[unseen[order]], order[~unseen[order]]])[: 3 * MAX_CELLS]
    rows = np.sort(order)
    return adata[rows], np.asarray(unseen[rows])
