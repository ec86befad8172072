"""`report`: the door. It finds the cells to score, translates them, and makes the tables."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.data import cells
from celltransfer.errors import CelltransferWarning
from celltransfer.metrics import protocol
from celltransfer.metrics.bootstrap import intervals
from celltransfer.metrics.space import centred
from celltransfer.reporting import scored, tables
from celltransfer.reporting.curve import curve as anchor_curve
from celltransfer.reporting.curve import numbers
from celltransfer.reporting.result import Report
from celltransfer.reporting.words import CONTROLS, TRANSLATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from celltransfer.model.model import TransferModel

# Cells on which intervals are checked.
MAX_COVERED = 500


def report(
    model: TransferModel,
    mdata: MuData,
    *,
    pairs: pd.DataFrame | None = None,
    labels: str | None = None,
    groups: str | Sequence[str] | None = None,
    curve: bool = False,
    anchors: Sequence[int] | None = None,
    max_seconds: float | None = 120.0,
    seed: int = 0,
) -> Report:
    """Score a model on co-assayed cells whose pairing it has not seen, next to controls on the same cells.

    Co-assayed cells outside the training cells are scored if there are at least 20; otherwise co-assayed training
    cells whose pairing was hidden. Anchors are never scored, nor are cells that lack a condition of the model; of more
    than 3,000 cells a random sample is. The scoring space is fitted on the training cells of the target and owes
    nothing to the model but the normalised scale that it predicts on.

    Parameters
    ----------
    model
        A fitted model.
    mdata
        MuData with the training cells and, for a score, co-assayed cells that were no anchors.
    pairs
        The true partners, a table of ``source_id`` and ``target_id``, where barcodes differ between the modalities.
    labels
        obs column with cell labels, for the label scores and controls; ``None`` takes the one a registered dataset
        names. Labels derived from both modalities flatter every method.
    groups
        More obs columns to score by. Labels and conditions are in ``by_group`` anyway.
    curve
        Also fit the method again with fewer anchors, for the curve of the scores over their number.
    anchors
        The numbers of anchors of that curve, such as ``(1, 3, 10)``; given, they ask for the curve. ``None``: 1, 3,
        10, 30 and so on, as far as the model has so many.
    max_seconds
        Time for these refits; ``None``: no limit.
    seed
        Seed of the random controls, the bootstrap and the refits.

    Returns
    -------
    Report
        A table in a notebook; ``.table``, ``.overall``, ``.by_group``, ``.by_feature``, ``.by_cell``, ``.risk`` and
        ``.curve`` as DataFrames; ``.to_markdown()``, ``.to_json()``, and ``.to_html("report.html")`` for a page with
        pictures. Without cells to score it still carries the verdict, and says why there is no table.

    Raises
    ------
    ModalityError, InputError
        The MuData lacks a modality, or the training cells.
    ConditionError
        There is no column of the name, or one with a value for every cell.
    """
    for name in (model.source, model.target):
        cells.check_modality(mdata, name)
    ks = numbers(anchors, len(model.anchors)) if curve or anchors is not None else None
    about = _about(model)
    rows = scored.known_pairs(mdata, model, pairs)
    known, about["cells"] = scored.cells_to_score(mdata, model, rows)
    chosen = scored.sample(known, seed)
    about["n_known"] = len(known)
    if len(chosen) < scored.MIN_CELLS:
        note = (
            f"Only {len(chosen)} co-assayed cells were no anchors, and {scored.MIN_CELLS} are needed for a score: the "
            "verdict is all that is known about this translation."
        )
        return Report(pd.DataFrame(), {}, about, model.verdict_, [*model.result_.notes, note])
    about["n_cells"] = len(chosen)
    grouped = scored.groupings(model, mdata, chosen, labels, groups)
    task, notes = scored.make_task(model, mdata, rows, chosen, labels)
    if model.translator.gives_distribution:
        about["coverage"], said = _coverage(model, mdata, chosen[:MAX_COVERED])
        notes.append(said)
    found = _scores(task, _translated(task, model, mdata), grouped, seed)
    if ks is not None:
        found["curve"], said_of_curve = _curve(model, mdata, task, ks, max_seconds, seed)
        notes += said_of_curve
    return Report(about=about, verdict=model.verdict_, notes=[*model.result_.notes, *notes], **found)


def _about(model: TransferModel) -> dict[str, Any]:
    return {
        "source": model.source,
        "target": model.target,
        "method": model.translator.label,
        "n_anchors": len(model.anchors),
        "seed": model.result_.seed,
        "seconds": model.result_.seconds,
        "device": model.result_.device,
        "status": model.result_.status.value,
        "n_cells": 0,
        "n_known": 0,
        "alignment": "" if model.alignment_ is None else model.alignment_.level,
        "max_cells": scored.MAX_CELLS,
        "cells": "",
        "versions": dict(model.result_.versions),
    }


def _coverage(model: TransferModel, mdata: MuData, rows: np.ndarray) -> tuple[dict[str, float], str]:
    """Share of measured values inside the stated intervals by level, and a sentence that says so."""
    source, target = (
        mdata.mod[name][own].copy() for name, own in zip((model.source, model.target), rows.T, strict=True)
    )
    target.obs_names = source.obs_names  # partners, by whatever names
    if model.conditions:
        for key in model.conditions:
            source.obs[key] = cells.obs_column(mdata, model.source, key).iloc[rows[:, 0]].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)  # the sentence says it
        found = {f"{level:.0%}": share for level, share in model.law.coverage(source, target).items()}
    shares = ", ".join(f"{level} intervals hold {share:.0%}" for level, share in found.items())
    return found, (
        f"Of the measured values of {len(rows)} cells, {shares}; that checks their width, not the translation. "
        f"{model.calibration_.describe()}"
    )


def _translated(task: protocol.Task, model: TransferModel, mdata: MuData) -> AnnData:
    """The scored cells, translated, in the order of the task."""
    own = mdata.mod[model.source]
    mask = own.obs_names.isin(task.source_test.obs_names)
    return model.translate_cells(cells.take(own, mask), mdata)[task.source_test.obs_names]


def _scores(task: protocol.Task, translated: AnnData, groups: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """The tables of a report by name."""
    mine, controls = protocol.score(task, translated), protocol.control_table(task, seed)
    ceiling = controls["reference"]
    rows = {TRANSLATION: mine.values} | {CONTROLS[name]: controls[name].values for name in CONTROLS if name in controls}
    table = pd.DataFrame(rows).T
    per_cell = {name: values for name, values in mine.per_cell.items() if np.isfinite(values).any()}
    features = task.truth.var_names.get_indexer(translated.var_names)
    points = centred(task.space.transform(translated.X, features))
    by_cell = tables.by_cell(task, mine, points, translated.obs, groups)
    return {
        "table": table,
        "intervals": {name: (found.low, found.high) for name, found in intervals(per_cell, seed=seed).items()},
        "overall": tables.overall(mine, ceiling, table, seed),
        "by_group": tables.by_group(groups, mine, ceiling, points, task.truth_points, seed),
        "by_feature": tables.by_feature(translated.var_names, mine, translated.X, task.truth_normalised[:, features]),
        "by_cell": by_cell,
        "risk": tables.risk(by_cell, seed),
    }


def _curve(
    model: TransferModel, mdata: MuData, task: protocol.Task, ks: list[int], max_seconds: float | None, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    if model.method.endswith(", backward"):
        return pd.DataFrame(), ["There is no curve for a model that is turned around; ask for that of the model."]
    if not ks:
        return pd.DataFrame(), ["There is no curve: it takes a number of anchors below that of the model."]
    return anchor_curve(model, mdata, task, ks, max_seconds=max_seconds, seed=seed)
