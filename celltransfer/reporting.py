"""`celltransfer.report`: how good a translation is, on cells whose partner is known, with controls beside it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer.data import cells
from celltransfer.data.anchors import resolve_anchors
from celltransfer.errors import CelltransferWarning, ConditionError, InputError, ModalityError
from celltransfer.markdown import markdown_table
from celltransfer.metrics import protocol
from celltransfer.metrics.bootstrap import intervals
from celltransfer.metrics.scores import reference_share
from celltransfer.pp.slots import concatenate

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mudata import MuData
    from rich.console import Group

    from celltransfer.model import TransferModel
    from celltransfer.pp import Recipe
    from celltransfer.train.outcome import Verdict

# Fewer cells with a known partner than this give no figure worth printing.
MIN_CELLS = 20
# More cells than this are not scored but sampled: the cost of ranking cells grows with the square of their number.
MAX_CELLS = 3000
# With a smaller share of the training cells at hand, the report says what it was fitted on instead.
MIN_TRAINING_SHARE = 0.95
# The ceiling needs pairs to learn from; with fewer it would be no ceiling.
MIN_CEILING_PAIRS = 50
# A ceiling this close to chance gives no scale to measure against.
NO_CEILING = 0.45
TRANSLATION = "translation"
_NAMES = {
    "chance": "chance",
    "depth": "depth rank",
    "depth_reversed": "depth rank, reversed",
    "condition_mean": "condition mean",
    "shuffled_anchors": "ridge on shuffled anchors",
    "labels_only": "labels only",
    "label_oracle": "label oracle",
    "ridge": "ridge on the anchors",
    "pls": "PLS on the anchors",
    "reference": "ceiling: all pairs",
}
_HEADLINE = [
    "foscttm",
    "foscttm_source_to_target",
    "foscttm_target_to_source",
    "knn_accuracy@10",
    "knn_accuracy@50",
    "knn_accuracy_target_to_source@10",
    "label_transfer_accuracy",
    "foscttm_within_label",
    "foscttm_depth_regressed",
    "bias",
]
# Cells on which intervals are checked.
MAX_COVERED = 500
# Keeps the sample of cells unrelated to other draws of the same seed.
_SAMPLE = 41


@dataclass(frozen=True, eq=False)
class Report:
    """The scores of a translation and of its controls on the same cells, as a value.

    Attributes
    ----------
    table
        One row per method (the translation first), one column per score. Empty where no cell has a known partner.
    intervals
        95 % bootstrap interval over cells of the translation's scores.
    about
        What was translated and on which cells it was scored.
    verdict
        The verdict of the fit, which has seen none of these pairs.
    """

    table: pd.DataFrame
    intervals: dict[str, tuple[float, float]]
    about: dict[str, Any]
    verdict: Verdict
    notes: list[str] = field(default_factory=list)

    def to_frame(self) -> pd.DataFrame:
        """All scores: one row per method, one column per score."""
        return self.table.copy()

    def headline(self) -> pd.DataFrame:
        """The scores that the printed table shows."""
        return self.table[[name for name in _HEADLINE if name in self.table and self.table[name].notna().any()]]

    def summary(self) -> list[str]:
        """What the table says, in sentences."""
        about = self.about
        lines = [
            f"{about['source']} -> {about['target']}, method {about['method']}, {about['n_anchors']} anchors, "
            f"seed {about['seed']}.",
            f"Verdict: {self.verdict.level}. {' '.join(self.verdict.reasons)}",
        ]
        if not self.table.empty:
            sample = f" (a random sample of {about['n_known']})" if about["n_cells"] < about["n_known"] else ""
            lines += [f"Scored on {about['n_cells']} {about['cells']}{sample}.", self._compare(), self._beaten_by()]
        return [*lines, *self.notes]

    def _compare(self) -> str:
        scores = dict(zip(self.table, self.table.loc[[TRANSLATION]].to_numpy(dtype=float)[0], strict=True))
        low, high = self.intervals["foscttm"]
        knn = self.intervals["knn_accuracy@10"]
        text = (
            f"FOSCTTM {scores['foscttm']:.3f} ({low:.3f} to {high:.3f}; 0 is perfect, chance 0.5); true partner among "
            f"the 10 nearest for {scores['knn_accuracy@10']:.1%} ({knn[0]:.1%} to {knn[1]:.1%}; "
            f"chance {min(10 / self.about['n_cells'], 1):.1%})"
        )
        ceiling = _NAMES["reference"]
        if ceiling in self.table.index:
            text += _against_ceiling(scores["foscttm"], float(self.table["foscttm"][ceiling]))
        return f"{text}."

    def _beaten_by(self) -> str:
        """Which controls translate better; none of them may use what the ceiling uses."""
        foscttm = self.table["foscttm"].drop(_NAMES["reference"], errors="ignore")
        better = foscttm.index[foscttm < foscttm[TRANSLATION]]
        if not len(better):
            return "No control has a lower FOSCTTM."
        return f"Controls with a lower FOSCTTM: {', '.join(f'{name} ({foscttm[name]:.3f})' for name in better)}."

    def to_markdown(self) -> str:
        """Sentences and the headline table, in Markdown."""
        lines = [f"# {self.summary()[0]}", "", *(f"{line}\n" for line in self.summary()[1:])]
        if not self.table.empty:
            lines += markdown_table(self.headline().rename(columns=_short).rename_axis("method"), _number)
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {
            "about": self.about,
            "verdict": self.verdict.to_dict(),
            "scores": table.to_dict(orient="index"),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "notes": self.notes,
        }

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_rich(self) -> Group:
        """Sentences and the headline table, for a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # Text, because rich takes "[...]" in a plain string for markup.
        sentences = [Text(line) for line in self.summary()]
        if self.table.empty:
            return Group(*sentences)
        shown = self.headline()
        table = Table()
        table.add_column("method", no_wrap=True)
        for name in shown:
            table.add_column(_short(name), justify="right")
        for name, row in shown.iterrows():
            style = "bold" if name == TRANSLATION else ""
            table.add_row(Text(str(name)), *(_number(value) for value in row), style=style)
        return Group(*sentences, table)

    def __str__(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Sentences and the headline table, as a piece of HTML."""
        from html import escape

        color = {"identified": "#2e7d32", "ambiguous": "#b26a00", "failed": "#c62828"}[self.verdict.level]
        lines = [escape(line) for line in self.summary()]
        lines[1] = f'<b style="color:{color}">{lines[1]}</b>'
        table = (
            "" if self.table.empty else self.headline().rename(columns=_short).to_html(float_format=_number, na_rep="")
        )
        return f"<p>{'<br>'.join(lines)}</p>{table}"


def _against_ceiling(foscttm: float, ceiling: float) -> str:
    """How far a FOSCTTM has come from chance to the ceiling, in words where a share would mislead."""
    if ceiling > NO_CEILING:
        return f"; the ceiling itself is at {ceiling:.3f}: hardly anything can be translated between these modalities"
    share = reference_share(foscttm, 0.5, ceiling)
    if share <= 0:
        return "; not better than chance"
    if share > 1:
        return f"; better than the ceiling ({ceiling:.3f}), which too few pairs may have set too low"
    return f"; {share:.0%} of the way from chance to the ceiling ({ceiling:.3f})"


def report(
    model: TransferModel,
    mdata: MuData,
    *,
    pairs: pd.DataFrame | None = None,
    labels: str | None = None,
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
    seed
        Seed of the random controls and the bootstrap.

    Returns
    -------
    Report
        With ``.to_frame()``, ``.to_markdown()``, ``.to_json()``; a table in a notebook. Without cells to score it
        still carries the verdict, and says why there is no table.
    """
    cells.check_mudata(mdata)
    for name in (model.source, model.target):
        if name not in mdata.mod:
            raise ModalityError(f"The model needs modality {name!r}, which the MuData lacks: {', '.join(mdata.mod)}.")
    about = {
        "source": model.source,
        "target": model.target,
        "method": model.method,
        "n_anchors": len(model.anchors),
        "seed": model.result_.seed,
        "seconds": model.result_.seconds,
        "device": model.result_.device,
        "status": model.result_.status.value,
        "n_cells": 0,
        "n_known": 0,
        "alignment": "" if model.alignment_ is None else model.alignment_.level,
        "max_cells": MAX_CELLS,
        "cells": "",
    }
    rows = _known_pairs(mdata, model, pairs)
    known, about["cells"] = _cells_to_score(mdata, model, rows)
    scored = _sample(known, seed)
    about["n_known"] = len(known)
    if len(scored) < MIN_CELLS:
        note = (
            f"Only {len(scored)} co-assayed cells were no anchors, and {MIN_CELLS} are needed for a score: the verdict "
            "is all that is known about this translation."
        )
        return Report(pd.DataFrame(), {}, about, model.verdict_, [*model.result_.notes, note])
    about["n_cells"] = len(scored)
    task, notes = _task(model, mdata, rows, scored, labels)
    if model.translator.gives_distribution:
        about["coverage"], said = _coverage(model, mdata, scored[:MAX_COVERED])
        notes.append(said)
    return Report(*_scores(task, model, mdata, seed), about, model.verdict_, [*model.result_.notes, *notes])


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


def _known_pairs(mdata: MuData, model: TransferModel, pairs: pd.DataFrame | None) -> np.ndarray:
    """Rows (i, j) of all cells with a known partner, anchors left out, shape (n, 2)."""
    source, target = model.source, model.target
    if pairs is not None:
        rows = resolve_anchors(mdata, source, target, pairs).rows
    else:
        rows = cells.coassayed(mdata, source, target)
        if len(rows):
            cells.check_real_barcodes(mdata, source, target)
    names = mdata.mod[source].obs_names[rows[:, 0]], mdata.mod[target].obs_names[rows[:, 1]]
    anchor = names[0].isin(model.anchors["source_id"]) | names[1].isin(model.anchors["target_id"])
    rows = rows[~anchor]
    return rows[_has_conditions(mdata, source, model.conditions)[rows[:, 0]]]


def _cells_to_score(mdata: MuData, model: TransferModel, rows: np.ndarray) -> tuple[np.ndarray, str]:
    trained = np.zeros(len(rows), dtype=bool)
    for side, name in enumerate((model.source, model.target)):
        trained |= mdata.mod[name].obs_names[rows[:, side]].isin(model.training_cells[name])
    if (~trained).sum() >= MIN_CELLS:
        return rows[~trained], "co-assayed cells that training has not seen"
    if trained.all():
        return rows, "co-assayed training cells whose pairing was hidden"
    return rows, f"co-assayed cells, {trained.mean():.0%} of them training cells whose pairing was hidden"


def _sample(rows: np.ndarray, seed: int) -> np.ndarray:
    """At most `MAX_CELLS` of the pairs, in their order."""
    if len(rows) <= MAX_CELLS:
        return rows
    return rows[np.sort(np.random.default_rng([seed, _SAMPLE]).choice(len(rows), MAX_CELLS, replace=False))]


def _task(
    model: TransferModel, mdata: MuData, rows: np.ndarray, scored: np.ndarray, labels: str | None
) -> tuple[protocol.Task, list[str]]:
    sides = {name: _measured(mdata.mod[name], model.recipes[name]) for name in (model.source, model.target)}
    columns = _columns(model, mdata, labels)
    for name, adata in sides.items():
        adata.obs = pd.DataFrame({key: values[name] for key, values in columns.items()}, index=adata.obs_names)
    pool = {name: adata[adata.obs_names.isin(model.training_cells[name])] for name, adata in sides.items()}
    for name, adata in pool.items():
        if adata.n_obs < 2:
            raise InputError(f"The MuData lacks the training cells of {name!r}, which the controls are fitted on.")
    hidden = rows[~np.isin(rows[:, 0], scored[:, 0])] if len(scored) < len(rows) else rows[:0]
    ceiling, note = (hidden, "") if len(hidden) >= MIN_CEILING_PAIRS else (scored, " by cross-validation")
    source, target = (sides[name] for name in (model.source, model.target))
    notes = _missing_training_cells(model, pool)
    notes += [
        f"Ceiling: the best of ridge, PLS, CCA and a small network{note} on {len(ceiling)} pairs"
        f"{' of the scored cells' if note else ''} that the model was not shown."
    ]
    task = protocol.Task(
        source=model.source,
        target=model.target,
        regime="shared",
        mdata=_Pool(pool),
        anchors=model.anchors,
        source_test=source[scored[:, 0]],
        truth=target[scored[:, 1]],
        train_pairs=(source[ceiling[:, 0]], target[ceiling[:, 1]]),
        condition=_CONDITION if model.conditions else None,
        cell_labels=_labels_of(sides) if _LABEL in columns else None,
        labels=_either(*(sides[n].obs[_LABEL].iloc[scored[:, side]] for side, n in enumerate(sides)))
        if _LABEL in columns
        else None,
        target_names=pd.Series(pool[model.target].obs_names, index=pool[model.target].obs_names),
        normalizers={name: model.recipes[name].options.normalizer for name in sides},
        space_cells=pool[model.target],
    )
    return task, notes


def _missing_training_cells(model: TransferModel, pool: dict[str, AnnData]) -> list[str]:
    """A note for every modality of which the MuData holds a part of the training cells only."""
    shares = {name: adata.n_obs / max(1, len(model.training_cells[name])) for name, adata in pool.items()}
    return [
        f"The MuData holds {share:.0%} of the training cells of {name}: normalisation, scoring space and controls "
        "are fitted on those alone."
        for name, share in shares.items()
        if share < MIN_TRAINING_SHARE
    ]


def _scores(
    task: protocol.Task, model: TransferModel, mdata: MuData, seed: int
) -> tuple[pd.DataFrame, dict[str, tuple[float, float]]]:
    own = mdata.mod[model.source]
    rows = own.obs_names.get_indexer(task.source_test.obs_names)
    translated = model.translate_cells(cells.take(own, _mask(len(own), rows)), mdata)
    mine = protocol.score(task, translated[task.source_test.obs_names])
    controls = protocol.control_table(task, seed)
    table = {TRANSLATION: mine.values} | {_NAMES[name]: controls[name].values for name in _NAMES if name in controls}
    per_cell = {name: values for name, values in mine.per_cell.items() if np.isfinite(values).any()}
    bounds = {name: (found.low, found.high) for name, found in intervals(per_cell, seed=seed).items()}
    return pd.DataFrame(table).T, bounds


_LABEL, _CONDITION = "label", "condition"


def _columns(model: TransferModel, mdata: MuData, labels: str | None) -> dict[str, dict[str, np.ndarray]]:
    """Conditions and labels of the cells of both modalities, ``None`` where unknown."""
    names = model.source, model.target
    columns = {}
    if model.conditions:
        columns[_CONDITION] = {name: _conditions(mdata, name, model.conditions) for name in names}
    labels = labels or (mdata.uns.get("celltransfer_dataset", {}).get("labels") or None)
    if labels is not None:
        columns[_LABEL] = _labels(mdata, names, labels)
    return columns


def _has_conditions(mdata: MuData, name: str, keys: tuple[str, ...]) -> np.ndarray:
    """Which cells have a value of every condition, shape (n,)."""
    known = np.ones(mdata.mod[name].n_obs, dtype=bool)
    for key in keys:
        known &= cells.obs_column(mdata, name, key).notna().to_numpy()
    return known


def _conditions(mdata: MuData, name: str, keys: tuple[str, ...]) -> np.ndarray:
    known = _has_conditions(mdata, name, keys)
    out = np.full(len(known), None, dtype=object)
    some: Any = _Pool({name: mdata.mod[name][known]}, mdata.obs)
    out[known] = cells.condition_labels(some, name, keys)
    return out


def _labels(mdata: MuData, names: tuple[str, str], key: str) -> dict[str, np.ndarray]:
    """Labels by modality; a modality without the column has none, as long as the other has it."""
    found, error = {}, None
    for name in names:
        try:
            column = cells.obs_column(mdata, name, key).astype(object)
            found[name] = column.where(column.notna(), None).to_numpy()
        except ConditionError as missing:
            error = missing
            found[name] = np.full(mdata.mod[name].n_obs, None, dtype=object)
    if error is not None and all(pd.isna(values).all() for values in found.values()):
        raise error
    return found


def _either(first: pd.Series, second: pd.Series) -> np.ndarray:
    """Labels of the same cells from the first column that knows them, shape (n,)."""
    return np.where(first.notna(), first.to_numpy(dtype=object), second.to_numpy(dtype=object))


def _labels_of(sides: dict[str, AnnData]) -> pd.Series:
    both = pd.concat([adata.obs[_LABEL] for adata in sides.values()]).astype(object)
    return both[both.notna()].groupby(level=0).first()


def _measured(adata: AnnData, recipe: Recipe) -> AnnData:
    """What the recipe reads, all features of it, as X."""
    matrix = concatenate(recipe.slot.blocks(adata, recipe.options.scale_, None, "error"))
    return AnnData(matrix, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=recipe.slot.features(adata)))


def _mask(n: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    return mask


@dataclass(frozen=True)
class _Pool:
    """Some cells by modality, in the one way that the protocol and the readers of conditions look at a MuData."""

    mod: dict[str, AnnData]
    obs: pd.DataFrame | None = None


def _short(name: Hashable) -> str:
    text = str(name)
    for long, short in (("source_to_target", "->"), ("target_to_source", "<-"), ("_accuracy", ""), ("_", " ")):
        text = text.replace(long, short)
    return text


def _number(value: float) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"
