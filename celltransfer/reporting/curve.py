"""The k-curve: the scores of refits with fewer anchors, on the cells of the report."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer import translators
from celltransfer.data import cells
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import CelltransferError, CelltransferWarning, ConfigError
from celltransfer.metrics import controls, scores
from celltransfer.metrics.space import centred
from celltransfer.pp.shared import is_shared
from celltransfer.reporting.scored import CONDITION
from celltransfer.reporting.words import CONTROLS, TRANSLATION
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.train.stopping import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from celltransfer.metrics.protocol import Task
    from celltransfer.model.model import TransferModel

logger = logging.getLogger("celltransfer")

# Numbers of anchors where none are asked for, as far as the model has so many.
STEPS = (1, 3, 10, 30, 100, 300, 1000, 3000)
# Which anchors are drawn often matters more than their number; so often they are, while time is left.
DRAWS = 3
_ANCHORS = 47


def numbers(wanted: Sequence[int] | None, n_anchors: int) -> list[int]:
    """Numbers of anchors to refit with, sorted, fewer than the model has.

    Raises
    ------
    ConfigError
        A number is no whole number, or negative.
    """
    chosen = STEPS if wanted is None else wanted
    for k in chosen:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 0:
            raise ConfigError(f"anchors={list(chosen)!r}; expected numbers of anchors such as (1, 3, 10).")
    return sorted({int(k) for k in chosen if k < n_anchors})


def curve(
    model: TransferModel, mdata: MuData, task: Task, ks: Sequence[int], *, max_seconds: float | None, seed: int = 0
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of the model's method over the number of anchors, and of ridge on the same anchors.

    Up to three draws of the anchors, while time is left; within a draw fewer anchors are a subset of more. The last
    point is the model itself, which is not fitted again.

    Parameters
    ----------
    model, mdata
        The model, and the MuData with its training cells.
    task
        The cells to score.
    ks
        Numbers of anchors.
    max_seconds
        Time for all refits; what has not begun by then is left out, and one that runs is stopped.

    Returns
    -------
    pandas.DataFrame
        One row per method, number of anchors and draw; ``status`` says which refits the time limit stopped.
    list of str
        What was left out, and why.
    """
    pair = _pair(model, mdata, task)
    inputs = model.inputs(_rows(mdata, model.source, task.source_test.obs_names), mdata)
    rows = [_row(TRANSLATION, pair.n_anchors, 0, task, _points(model, task, inputs, model.translator))]
    rows += _ridge(task, np.arange(pair.n_anchors), 0)
    clock, lost = Clock(max_seconds), dict[str, list[int]]()
    jobs = list(_jobs(ks, pair.n_anchors, seed))
    for position, (draw, chosen) in enumerate(jobs):
        if clock.left() == 0:
            lost.setdefault(f"the limit of {max_seconds:.0f} s came first", []).append(len(chosen))
            continue
        logger.info("Refit %d of %d, with %d anchors.", position + 1, len(jobs), len(chosen))
        try:
            fitted = _refit(model, replace(pair, anchors=pair.anchors[chosen]), clock, len(jobs) - position, seed)
        except CelltransferError as error:
            lost.setdefault(str(error), []).append(len(chosen))
            continue
        found = _points(model, task, inputs, fitted)
        ended = {"seconds": fitted.result_.seconds, "status": fitted.result_.status.value}
        rows.append(_row(TRANSLATION, len(chosen), draw, task, found) | ended)
        rows += _ridge(task, chosen, draw)
    table = pd.DataFrame(rows).sort_values(["method", "n_anchors", "draw"], ascending=[False, True, True])
    return table.reset_index(drop=True), [_lost(reason, which) for reason, which in lost.items()]


def _jobs(ks: Sequence[int], n_anchors: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Draws and the anchors of each: every number once before any a second time."""
    orders = [np.random.default_rng([seed, _ANCHORS, draw]).permutation(n_anchors) for draw in range(DRAWS)]
    for draw, order in enumerate(orders):
        for k in ks:
            if k > 0 or draw == 0:
                yield draw, np.sort(order[:k])


def _lost(reason: str, which: list[int]) -> str:
    some = ", ".join(map(str, sorted(set(which))))
    return f"The curve lacks {len(which)} refit{'s' * (len(which) > 1)} with {some} anchors: {reason.rstrip('.')}."


def _pair(model: TransferModel, mdata: MuData, task: Task) -> ModalityPair:
    """The training cells that the MuData holds, in the order in which the task has them."""
    names = model.source, model.target
    pools = [task.mdata.mod[name] for name in names]
    x, y = (
        model.recipes[name].transform(_rows(mdata, name, pool.obs_names))
        for name, pool in zip(names, pools, strict=True)
    )
    codes: list[Any] = [None, None]
    if model.conditions:
        codes = [
            cells.encode_conditions(pool.obs[CONDITION].to_numpy(dtype=str), model.levels, name)
            for name, pool in zip(names, pools, strict=True)
        ]
    anchors = task.control_data.anchors
    shared = is_shared(*(model.recipes[name] for name in names))
    return ModalityPair(x, y, anchors, codes[0], codes[1], conditions=model.levels, links=model.links, shared=shared)


def _rows(mdata: MuData, name: str, wanted: pd.Index) -> Any:
    own = mdata.mod[name]
    part = own[own.obs_names.get_indexer(wanted)]
    return part.to_memory() if own.isbacked else part


def _refit(model: TransferModel, pair: ModalityPair, clock: Clock, left: int, seed: int) -> Any:
    fresh = translators.make(model.method, **model.translator.refit_config())
    trainer = Trainer(progress=False, max_seconds=clock.share(left))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        fresh.fit_pair(pair, seed=seed, trainer=trainer)
    if fresh.result_.status is Status.DIVERGED:
        raise ConfigError(f"training diverged. {fresh.result_.advice}")
    return fresh


def _points(model: TransferModel, task: Task, inputs: tuple[Any, Any], translator: Any) -> np.ndarray:
    """The scored cells as `translator` translates them, in the scoring space, shape (n, d)."""
    recipe = model.recipes[model.target]
    features = task.truth.var_names.get_indexer(recipe.feature_names_)
    latent = translator.translate(*inputs)
    blocks = scores.blocks(len(latent), 8 * len(features))
    return centred(
        np.concatenate([task.space.transform(recipe.inverse_transform(latent[rows]), features) for rows in blocks])
    )


def _ridge(task: Task, chosen: np.ndarray, draw: int) -> list[dict[str, Any]]:
    """Ridge on the same anchors, if there are any."""
    data = replace(task.control_data, anchors=task.control_data.anchors[chosen])
    points = controls.ridge_on_anchors(data)
    return [] if points is None else [_row(CONTROLS["ridge"], len(chosen), draw, task, centred(points))]


def _row(method: str, k: int, draw: int, task: Task, points: np.ndarray) -> dict[str, Any]:
    there, back = scores.mutual_ranks(points, task.truth_points)
    forward, backward = scores.fraction_closer(there).mean(), scores.fraction_closer(back).mean()
    return {
        "method": method,
        "n_anchors": k,
        "draw": draw,
        "foscttm": (forward + backward) / 2,
        "foscttm_source_to_target": forward,
        "foscttm_target_to_source": backward,
        "knn_accuracy@10": scores.within_nearest(there, 10).mean(),
        "knn_accuracy@50": scores.within_nearest(there, 50).mean(),
    }
