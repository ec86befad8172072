"""Which cells a report scores, and the task that they make: truth, training cells, conditions and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer.data import cells
from celltransfer.data.anchors import resolve_anchors
from celltransfer.errors import ConditionError, InputError
from celltransfer.metrics import protocol
from celltransfer.pp.slots import concatenate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

    from celltransfer.model.model import TransferModel
    from celltransfer.pp import Recipe

# Fewer cells with a known partner than this give no figure worth printing.
MIN_CELLS = 20
# More cells than this are not scored but sampled: the cost of ranking cells grows with the square of their number.
MAX_CELLS = 3000
# With a smaller share of the training cells at hand, the report says what it was fitted on instead.
MIN_TRAINING_SHARE = 0.95
# The ceiling needs pairs to learn from; with fewer it would be no ceiling.
MIN_CEILING_PAIRS = 50
# Cells per value below which a column is no grouping: a barcode, a measurement.
MIN_PER_GROUP = 2
LABEL, CONDITION = "label", "condition"
# Keeps the sample of cells unrelated to other draws of the same seed.
_SAMPLE = 41


def known_pairs(mdata: MuData, model: TransferModel, pairs: pd.DataFrame | None) -> np.ndarray:
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


def cells_to_score(mdata: MuData, model: TransferModel, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """The pairs among `rows` that are scored, shape (n, 2), and what they are in words."""
    trained = np.zeros(len(rows), dtype=bool)
    for side, name in enumerate((model.source, model.target)):
        trained |= mdata.mod[name].obs_names[rows[:, side]].isin(model.training_cells[name])
    if (~trained).sum() >= MIN_CELLS:
        return rows[~trained], "co-assayed cells that training has not seen"
    if trained.all():
        return rows, "co-assayed training cells whose pairing was hidden"
    return rows, f"co-assayed cells, {trained.mean():.0%} of them training cells whose pairing was hidden"


def sample(rows: np.ndarray, seed: int) -> np.ndarray:
    """At most `MAX_CELLS` of the pairs, in their order."""
    if len(rows) <= MAX_CELLS:
        return rows
    return rows[np.sort(np.random.default_rng([seed, _SAMPLE]).choice(len(rows), MAX_CELLS, replace=False))]


def make_task(
    model: TransferModel, mdata: MuData, rows: np.ndarray, scored: np.ndarray, labels: str | None
) -> tuple[protocol.Task, list[str]]:
    """The task whose evaluation cells are `scored`, and notes on what it rests on."""
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
        condition=CONDITION if model.conditions else None,
        cell_labels=_labels_of(sides) if LABEL in columns else None,
        labels=_either(*(sides[n].obs[LABEL].iloc[scored[:, side]] for side, n in enumerate(sides)))
        if LABEL in columns
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


def _columns(model: TransferModel, mdata: MuData, labels: str | None) -> dict[str, dict[str, np.ndarray]]:
    """Conditions and labels of the cells of both modalities, ``None`` where unknown."""
    names = model.source, model.target
    columns = {}
    if model.conditions:
        columns[CONDITION] = {name: _conditions(mdata, name, model.conditions) for name in names}
    labels = labels or _registered(mdata, "labels")
    if labels is not None:
        columns[LABEL] = _labels(mdata, names, labels)
    return columns


def _registered(mdata: MuData, role: str) -> str | None:
    """The obs column that a registered dataset names for `role`."""
    return mdata.uns.get("celltransfer_dataset", {}).get(role) or None


def groupings(
    model: TransferModel, mdata: MuData, scored: np.ndarray, labels: str | None, groups: str | Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Values by which the scored cells are grouped, by the name of the obs column, shape (n,), ``None`` if unknown.

    The labels, the conditions of the model (joined) and of a registered dataset, and `groups`.
    """
    wanted = [groups] if isinstance(groups, str) else list(groups or ())
    keys = [labels or _registered(mdata, "labels"), *wanted]
    names = model.source, model.target
    found = {}
    if model.conditions:
        joined = " | ".join(model.conditions)
        found[joined] = _conditions(mdata, model.source, model.conditions)[scored[:, 0]]
    else:
        keys.append(_registered(mdata, "condition"))
    for key in dict.fromkeys(key for key in keys if key):
        sides = _labels(mdata, names, key)
        own = (pd.Series(sides[name][scored[:, side]], dtype=object) for side, name in enumerate(names))
        values = _either(*own)
        _check_grouping(key, values)
        found = {key: values} | found if key == keys[0] else found | {key: values}
    return found


def _check_grouping(key: str, values: np.ndarray) -> None:
    known = pd.Series(values, dtype=object).dropna()
    if len(known) < MIN_PER_GROUP * known.nunique() and known.nunique() > 1:
        raise ConditionError(
            f"Column {key!r} has {known.nunique()} values for {len(known)} scored cells; to group cells by it takes "
            "one with few values, such as a cell type."
        )


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
    both = pd.concat([adata.obs[LABEL] for adata in sides.values()]).astype(object)
    return both[both.notna()].groupby(level=0).first()


def _measured(adata: AnnData, recipe: Recipe) -> AnnData:
    """What the recipe reads, all features of it, as X."""
    matrix = concatenate(recipe.slot.blocks(adata, recipe.options.scale_, None, "error"))
    return AnnData(matrix, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=recipe.slot.features(adata)))


@dataclass(frozen=True)
class _Pool:
    """Some cells by modality, in the one way that the protocol and the readers of conditions look at a MuData."""

    mod: dict[str, AnnData]
    obs: pd.DataFrame | None = None
